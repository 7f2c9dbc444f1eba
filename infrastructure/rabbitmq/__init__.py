"""RabbitMQ: topology, connection, the mail queue and its dead letters."""
