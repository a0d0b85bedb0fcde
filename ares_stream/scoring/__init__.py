"""Scoring: tokenise, batch, run ONNX, ask the panel of judges. The one room that imports
onnxruntime; it never imports torch."""
