"""What several tests use: models, brokers, processes and records of their own."""
