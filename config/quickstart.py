"""The laptop path: masked diffusion on the Python documentation."""

algorithm = "mdlm"
dataset = "pydocs"
out_dir = "out/quickstart"
