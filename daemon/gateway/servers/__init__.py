"""The model servers behind the gateway: which are asked, and how."""
