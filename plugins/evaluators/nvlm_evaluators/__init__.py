"""Models behind `nvlm serve` as models of lmms-eval (`lmms`) and VLMEvalKit (`vlmevalkit`); both ask through `client`.

A package of its own, without dependencies: evaluators pin versions that nvlm-train cannot live with, so they are asked over HTTP.
"""
