"""The terms of a group-relative loss, token by token, as pure functions of tensors. Know no groups and no models."""
