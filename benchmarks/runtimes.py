"""Runtimes of ONNX models, on one thread."""


def in_onnxruntime(path):
    """Returns the function of ONNX Runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    return lambda x: session.run(["probs"], {"inputs": x})[0]


def in_openvino(path):
    """Returns the function of OpenVINO, on one thread and in float32."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    request = openvino.compile_model(path, "CPU", options).create_infer_request()
    return lambda x: request.infer({"inputs": x})["probs"]
