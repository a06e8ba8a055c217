# An image of relay for arm64, built by GitHub Actions (OIDC) on a runner inside a network that exists.
image         = "relay"
image_version = "0.1.0"
arch          = "arm64"
files         = "packer/build/aarch64"

auth            = "oidc"
subscription_id = "00000000-0000-0000-0000-000000000000"
tenant_id       = "00000000-0000-0000-0000-000000000000"
client_id       = "00000000-0000-0000-0000-000000000000"

location             = "westeurope"
vm_size              = "Standard_D2pds_v6"
disk_controller_type = "NVMe"
spot                 = true
build_network = {
  allowed_inbound_ip_addresses        = []
  virtual_network_name                = "builds"
  virtual_network_subnet_name         = "packer"
  virtual_network_resource_group_name = "network"
}

gallery = {
  resource_group = "relay"
  name           = "gal_relay"
  image          = "relay-arm64"
}
