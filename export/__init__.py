"""A PyTorch model in, a proved ONNX file out."""
