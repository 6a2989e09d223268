"""TensorRT 10 and 11, and TensorRT for RTX: one builder and one runner; ``edition`` has what differs."""
