"""The events that the gateway publishes: from answers and feedback to Kafka."""
