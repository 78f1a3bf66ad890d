"""Where the time of some steps goes (`run.profile`): a trace, a summary and a page, in profile/STAGE of the run directory.

In the order of things: `hook` watches the steps, `session` records some of them, `marks` puts the model's parts into the
trace, `trace` reads it and finds out whose each event is, `times` adds up, `summary` joins all ranks, `page` draws.
"""
