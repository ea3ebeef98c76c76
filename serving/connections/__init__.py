"""HTTP services that an owner declares and others ask through the gateway."""
