# An image of relay for x86-64, built from a laptop: az login. Subscription, address, regions and names are yours to set.
image         = "relay"
image_version = "0.1.0"
arch          = "amd64"
files         = "packer/build/x86_64"

auth            = "cli"
subscription_id = "00000000-0000-0000-0000-000000000000"

location = "westeurope"
vm_size  = "Standard_D2as_v5"
spot     = true
build_network = {
  allowed_inbound_ip_addresses        = ["203.0.113.7"]
  virtual_network_name                = ""
  virtual_network_subnet_name         = ""
  virtual_network_resource_group_name = ""
}

gallery = {
  resource_group = "relay"
  name           = "gal_relay"
  image          = "relay-amd64"
}
replicas = {
  westeurope  = 2
  northeurope = 1
}
