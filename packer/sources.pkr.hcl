# Where the provisioners run: a machine in Azure that becomes a version in the gallery, or one that is there already.

locals {
  files     = trimsuffix(var.files, "/")
  artifacts = "${path.root}/artifacts/${var.image}-${var.image_version}-${var.arch}"
  # The build's own region has to be one of them.
  replicas = merge({ (var.location) = 1 }, var.replicas)
}

source "azure-arm" "ubuntu" {
  # Who Packer is. Without any of these it is the managed identity of the machine that it runs on.
  use_azure_cli_auth = var.auth == "cli"
  subscription_id    = var.subscription_id
  tenant_id          = var.auth == "oidc" ? var.tenant_id : null
  client_id          = var.auth == "cli" || var.client_id == "" ? null : var.client_id
  oidc_request_url   = var.auth == "oidc" ? var.oidc_request_url : null
  oidc_request_token = var.auth == "oidc" ? var.oidc_request_token : null

  # Ubuntu 24.04 LTS, generation 2.
  os_type         = "Linux"
  image_publisher = "canonical"
  image_offer     = "ubuntu-24_04-lts"
  image_sku       = var.arch == "arm64" ? "server-arm64" : "server"
  image_version   = var.base_image_version

  # The machine. Its resource group, address and disk are temporary.
  location             = var.location
  vm_size              = var.vm_size
  disk_controller_type = var.disk_controller_type == "" ? null : var.disk_controller_type
  dynamic "spot" {
    for_each = var.spot ? ["spot"] : []
    content {
      eviction_policy = "Delete"
      max_price       = -1
    }
  }

  # Trusted Launch, as the definition in the gallery demands.
  security_type       = "TrustedLaunch"
  secure_boot_enabled = true
  vtpm_enabled        = true

  # Who reaches it: never everybody (variable build_network).
  allowed_inbound_ip_addresses        = length(var.build_network.allowed_inbound_ip_addresses) > 0 ? var.build_network.allowed_inbound_ip_addresses : null
  virtual_network_name                = var.build_network.virtual_network_name == "" ? null : var.build_network.virtual_network_name
  virtual_network_subnet_name         = var.build_network.virtual_network_name == "" ? null : var.build_network.virtual_network_subnet_name
  virtual_network_resource_group_name = var.build_network.virtual_network_name == "" ? null : var.build_network.virtual_network_resource_group_name
  communicator                        = "ssh"
  ssh_username                        = "packer"
  ssh_clear_authorized_keys           = true
  ssh_timeout                         = "15m"

  # What becomes of it: a version that nobody gets by asking for the latest, until it has been tested.
  dynamic "shared_image_gallery_destination" {
    for_each = var.dry_run ? [] : ["gallery"]
    content {
      subscription         = var.subscription_id
      resource_group       = var.gallery.resource_group
      gallery_name         = var.gallery.name
      image_name           = var.gallery.image
      image_version        = var.image_version
      storage_account_type = var.storage_account_type
      dynamic "target_region" {
        for_each = local.replicas
        content {
          name     = target_region.key
          replicas = target_region.value
        }
      }
    }
  }
  shared_gallery_image_version_exclude_from_latest = true
  shared_gallery_image_version_end_of_life_date    = var.end_of_life == "" ? null : var.end_of_life
  shared_image_gallery_timeout                     = "2h"
  skip_create_image                                = var.dry_run

  azure_tags = merge(var.tags, {
    image   = var.image
    version = var.image_version
  })
}

source "null" "local" {
  communicator         = "ssh"
  ssh_host             = var.local.host
  ssh_port             = var.local.port
  ssh_username         = var.local.username
  ssh_private_key_file = var.local.private_key_file == "" ? null : var.local.private_key_file
  ssh_agent_auth       = var.local.private_key_file == ""
}
