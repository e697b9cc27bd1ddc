"""ONNX in, engines and runners out: one file a runtime, found by name in `table`."""
