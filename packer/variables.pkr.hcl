# Everything that differs between two builds. relay-amd64.pkrvars.hcl, relay-arm64.pkrvars.hcl and haproxy.pkrvars.hcl
# are examples; docs/how-to/bake-the-image.md goes through them. No variable is a secret but oidc_request_token, which
# comes from the environment alone.

# --- what the image is ------------------------------------------------------------------------------------------------

variable "image" {
  type        = string
  description = "What the image runs: relay, or haproxy for a comparison in the fleet."
  default     = "relay"
  validation {
    condition     = contains(["relay", "haproxy"], var.image)
    error_message = "The image is one of relay or haproxy."
  }
}

variable "image_version" {
  type        = string
  description = "Version in the gallery, three integers: python -m scripts.image version."
  validation {
    condition     = var.image_version != "" && regex_replace(var.image_version, "^(0|[1-9][0-9]*)[.](0|[1-9][0-9]*)[.](0|[1-9][0-9]*)$", "") == ""
    error_message = "The image_version is three integers, as in 1.2.3: a gallery has no release candidates."
  }
}

variable "arch" {
  type        = string
  description = "Architecture, in Ubuntu's words: amd64 or arm64. The definition's architecture has to be the same."
  default     = "amd64"
  validation {
    condition     = contains(["amd64", "arm64"], var.arch)
    error_message = "The arch is one of amd64 or arm64."
  }
}

variable "base_image_version" {
  type        = string
  description = "Version of Canonical's image of Ubuntu 24.04 to start from; latest, or one to repeat a build."
  default     = "latest"
  validation {
    condition     = var.base_image_version != "" && regex_replace(var.base_image_version, "^(latest|[0-9]+[.][0-9]+[.][0-9]+)$", "") == ""
    error_message = "The base_image_version is latest, or as in 24.04.202611200."
  }
}

variable "files" {
  type        = string
  description = "Folder that python -m scripts.image files has made for this architecture."
  validation {
    condition     = length(var.files) > 0
    error_message = "The folder of files must be named, as in packer/build/x86_64."
  }
}

# --- what is on it ----------------------------------------------------------------------------------------------------

variable "ssh" {
  type        = string
  description = "SSH on the machines that are made of the image: off or on."
  default     = "off"
  validation {
    condition     = contains(["off", "on"], var.ssh)
    error_message = "The value of ssh is one of off or on."
  }
}

variable "unattended_upgrades" {
  type        = string
  description = "Security updates on running machines, without reboots: on or off."
  default     = "on"
  validation {
    condition     = contains(["off", "on"], var.unattended_upgrades)
    error_message = "The value of unattended_upgrades is one of on or off."
  }
}

variable "azure_monitor" {
  type        = string
  description = "What the Azure Monitor Agent reads: off, rsyslog (syslog) or file (a JSON file)."
  default     = "off"
  validation {
    condition     = contains(["off", "rsyslog", "file"], var.azure_monitor)
    error_message = "The value of azure_monitor is one of off, rsyslog or file."
  }
}

variable "prometheus" {
  type        = string
  description = "Prometheus in agent mode, writing to an Azure Monitor workspace: off or agent."
  default     = "off"
  validation {
    condition     = contains(["off", "agent"], var.prometheus)
    error_message = "The value of prometheus is one of off or agent."
  }
}

variable "prometheus_remote_write" {
  type        = string
  description = "With prometheus = agent: the workspace's metrics ingestion endpoint."
  default     = ""
  validation {
    condition     = regex_replace(var.prometheus_remote_write, "^(https://.+)?$", "") == ""
    error_message = "The prometheus_remote_write endpoint begins with https://."
  }
}

variable "prometheus_client_id" {
  type        = string
  description = "With prometheus = agent: client id of the machines' user-assigned identity."
  default     = ""
  validation {
    condition     = regex_replace(var.prometheus_client_id, "^([0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})?$", "") == ""
    error_message = "The prometheus_client_id is a UUID."
  }
}

# --- who builds it ----------------------------------------------------------------------------------------------------

variable "auth" {
  type        = string
  description = "Who Packer is towards Azure: cli (az login), oidc (GitHub Actions) or identity (this machine's managed identity)."
  default     = "cli"
  validation {
    condition     = contains(["cli", "oidc", "identity"], var.auth)
    error_message = "The value of auth is one of cli, oidc or identity."
  }
}

variable "subscription_id" {
  type        = string
  description = "Subscription of the build and of the gallery."
  validation {
    condition     = var.subscription_id != "" && regex_replace(var.subscription_id, "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", "") == ""
    error_message = "The subscription_id is a UUID."
  }
}

variable "tenant_id" {
  type        = string
  description = "With auth = oidc: the Entra tenant."
  default     = ""
  validation {
    condition     = regex_replace(var.tenant_id, "^([0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})?$", "") == ""
    error_message = "The tenant_id is a UUID."
  }
}

variable "client_id" {
  type        = string
  description = "With auth = oidc: the application's client id; with auth = identity: that of a user-assigned identity."
  default     = ""
  validation {
    condition     = regex_replace(var.client_id, "^([0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})?$", "") == ""
    error_message = "The client_id is a UUID."
  }
}

variable "oidc_request_url" {
  type        = string
  description = "With auth = oidc: set by GitHub Actions where a job has id-token: write."
  default     = env("ACTIONS_ID_TOKEN_REQUEST_URL")
}

variable "oidc_request_token" {
  type        = string
  description = "With auth = oidc: likewise. Never write it into a file."
  default     = env("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
  sensitive   = true
}

# --- the machine that builds it ---------------------------------------------------------------------------------------

variable "location" {
  type        = string
  description = "Region of the build; a copy of the image always goes there."
  validation {
    condition     = var.location != "" && regex_replace(var.location, "^[a-z0-9]+$", "") == ""
    error_message = "The location is a region's short name, as in westeurope."
  }
}

variable "vm_size" {
  type        = string
  description = "Size of the build machine; the plugin's default is one that no longer exists. Of the image's architecture, generation 2, able to do Trusted Launch."
  validation {
    condition     = var.vm_size != "" && regex_replace(var.vm_size, "^Standard_[A-Za-z0-9_-]+$", "") == ""
    error_message = "The vm_size begins with Standard_, as in Standard_D2as_v5."
  }
}

variable "spot" {
  type        = bool
  description = "Build on a Spot machine. An eviction ends the build with an error; repeat it, or set false."
  default     = true
}

variable "build_network" {
  type = object({
    allowed_inbound_ip_addresses        = list(string)
    virtual_network_name                = string
    virtual_network_subnet_name         = string
    virtual_network_resource_group_name = string
  })
  description = "How Packer reaches the build machine: a public address that takes SSH from these addresses only (yours), or a network that exists and that Packer can reach."
  validation {
    condition     = (length(var.build_network.allowed_inbound_ip_addresses) > 0) != (var.build_network.virtual_network_name != "")
    error_message = "The build_network names either allowed_inbound_ip_addresses or a virtual_network_name: with neither, port 22 of the build machine is open to everybody."
  }
  validation {
    condition     = length([for address in var.build_network.allowed_inbound_ip_addresses : address if address == "" || regex_replace(address, "^[0-9a-fA-F.:]+(/([1-9]|[1-9][0-9]|1[01][0-9]|12[0-8]))?$", "") != ""]) == 0
    error_message = "The allowed_inbound_ip_addresses are addresses or networks, and none of them is all of the Internet."
  }
}

variable "disk_controller_type" {
  type        = string
  description = "SCSI or NVMe, for sizes that have only one of them; empty: Azure's choice."
  default     = ""
  validation {
    condition     = contains(["", "SCSI", "NVMe"], var.disk_controller_type)
    error_message = "The disk_controller_type is empty, SCSI or NVMe."
  }
}

# --- where it goes ----------------------------------------------------------------------------------------------------

variable "gallery" {
  type = object({
    resource_group = string
    name           = string
    image          = string
  })
  description = "Azure Compute Gallery, and the definition in it, which exists beforehand: Linux, generalized, V2, the same architecture, and SecurityType=TrustedLaunch (TrustedLaunchSupported refuses versions made of a machine)."
  validation {
    condition     = var.gallery.name != "" && regex_replace(var.gallery.name, "^[A-Za-z0-9][A-Za-z0-9._]*$", "") == ""
    error_message = "The gallery's name has letters, digits, dots and underscores, no hyphen."
  }
}

variable "replicas" {
  type        = map(number)
  description = "Regions that get a copy, with the number of replicas: one for each 50 machines that start at once."
  default     = {}
  validation {
    condition     = length([for count in values(var.replicas) : count if count < 1 || count > 100]) == 0
    error_message = "The replicas of a region are 1 to 100."
  }
}

variable "storage_account_type" {
  type        = string
  description = "Storage of the copies: Standard_ZRS survives the loss of a zone, Standard_LRS is for regions without zones."
  default     = "Standard_ZRS"
  validation {
    condition     = contains(["Standard_ZRS", "Standard_LRS", "Premium_LRS"], var.storage_account_type)
    error_message = "The storage_account_type is Standard_ZRS, Standard_LRS or Premium_LRS."
  }
}

variable "end_of_life" {
  type        = string
  description = "Date after which nobody should start this version, as in 2027-12-31T00:00:00Z; empty: none."
  default     = ""
  validation {
    condition     = regex_replace(var.end_of_life, "^([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]+Z)?$", "") == ""
    error_message = "The end_of_life is a time as in 2027-12-31T00:00:00Z."
  }
}

variable "dry_run" {
  type        = bool
  description = "Build and check the machine, and make no image of it."
  default     = false
}

variable "tags" {
  type        = map(string)
  description = "Tags of the build's resources and of the version."
  default     = {}
}

# --- a machine of one's own, instead of Azure: -only=null.local -------------------------------------------------------

variable "local" {
  type = object({
    host             = string
    port             = number
    username         = string
    private_key_file = string
  })
  description = "A machine that is there already and takes SSH, with a key in this file, or in ssh-agent if none is named; the user may use sudo without a password."
  default = {
    host             = "127.0.0.1"
    port             = 22
    username         = "root"
    private_key_file = ""
  }
}
