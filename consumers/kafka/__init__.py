"""Sources of events and the publisher, on Kafka's clients and in memory."""
