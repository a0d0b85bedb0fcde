"""`ares demo`: a real Kafka, real ONNX models, conversations, and failures found exactly once.

What is synthetic: without `--input` the language is invented, and policy, reward model and
judge are tiny models made on the spot with weaknesses planted on purpose (ares_stream.lab).
What is real: the broker, the transactions, the ONNX sessions, the scorer (a process of its
own, the same as in production), and the count at the end, taken by an independent
read_committed reader.
"""
