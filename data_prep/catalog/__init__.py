"""The catalog: one YAML entry for each dataset of the NVLM paper. `entries` reads it, `blend` and `listing` write from it."""
