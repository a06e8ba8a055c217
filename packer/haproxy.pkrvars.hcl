# HAProxy on the same system, for a comparison in the fleet; built by a machine with a managed identity.
image         = "haproxy"
image_version = "0.1.0"
arch          = "amd64"
files         = "packer/build/x86_64"

auth            = "identity"
subscription_id = "00000000-0000-0000-0000-000000000000"

location = "westeurope"
vm_size  = "Standard_D2as_v5"
spot     = true
build_network = {
  allowed_inbound_ip_addresses        = ["203.0.113.0/28"]
  virtual_network_name                = ""
  virtual_network_subnet_name         = ""
  virtual_network_resource_group_name = ""
}

gallery = {
  resource_group = "relay"
  name           = "gal_relay"
  image          = "haproxy-amd64"
}
