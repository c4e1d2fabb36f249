"""Examples for the help of every command."""

EXAMPLES = {
    "demo": """\
  convfactor demo
  convfactor demo --max-drop 0.3 --output demo""",
    "optimize": """\
  convfactor optimize mymodels:make_net --weights net.safetensors \\
      --input 1x3x224x224 --model-tolerance 0.02 --calibration batches.npz \\
      --output fast
  convfactor optimize model.pt2 --tolerance 0.01 --output fast --json
  convfactor optimize mymodels:net --input 1x3x64x64 --evaluate mymodels:psnr \\
      --max-drop 0.1 --calibration mymodels:batches --skip head --output fast

A run that was interrupted goes on when the same command is given again.""",
    "show": """\
  convfactor show fast
  convfactor show fast --html page.html --model mymodels:make_net \\
      --weights net.safetensors
  convfactor show fast --csv - | cut -d , -f 1,16""",
    "factorize": """\
  convfactor factorize gaussian:size=9,sigma=1.5
  convfactor factorize gabor:size=15,angle=30 --tolerance 0.05 --plot gabor.png
  convfactor factorize near_sym_a:lh --json
  convfactor factorize net.safetensors --tensor conv1.weight --widths 8,8,8 \\
      --output stages.npz

filters, with what they are by default, in pixels and degrees:
  gaussian:size=9,sigma=1.5
  log:size=9,sigma=1.4
  binomial:size=5
  gabor:size=15,wavelength=6,angle=45,sigma=3,aspect=1,phase=0
  near_sym_a:lh and other wavelets of pytorch_wavelets, with ll, lh, hl or hh
where sigma is left out, it is a sixth of the size of a gaussian, and half the
wavelength of a gabor""",
    "bench": """\
  convfactor bench 64x32x9x9 --size 256
  convfactor bench 64x1x31x31 --groups 64 --size 128x192 --batch 8
  convfactor bench 32x3x9x9 --stride 2 --dtype bfloat16 --json""",
    "env": """\
  convfactor env
  convfactor env --json > env.json""",
}
