# In a file of its own: Packer 1.6, which checks the other files where nothing newer is at hand, does not know it.
packer {
  required_version = ">= 1.9.0"
  required_plugins {
    azure = {
      source  = "github.com/hashicorp/azure"
      version = "~> 2.6"
    }
  }
}
