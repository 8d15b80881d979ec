"""The events that the gateway publishes to Kafka, made of answers and feedback."""
