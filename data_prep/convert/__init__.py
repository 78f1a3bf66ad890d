"""Converters: public dataset formats in, samples out. A file per family; `families.py` lists them."""
