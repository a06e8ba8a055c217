# The scripts in their order, a boot, the checks, the clean-up. scripts/image.py runs the same scripts in a local root.

build {
  sources = ["source.azure-arm.ubuntu", "source.null.local"]

  provisioner "shell" {
    inline = ["rm -rf /tmp/relay-image && mkdir /tmp/relay-image"]
  }

  provisioner "file" {
    source      = "${local.files}/"
    destination = "/tmp/relay-image"
  }

  provisioner "shell" {
    execute_command = "sudo env {{ .Vars }} bash '{{ .Path }}'"
    environment_vars = [
      "FILES=/tmp/relay-image",
      "IMAGE=${var.image}",
      "IMAGE_VERSION=${var.image_version}",
      "UNATTENDED_UPGRADES=${var.unattended_upgrades}",
      "AZURE_MONITOR=${var.azure_monitor}",
      "PROMETHEUS=${var.prometheus}",
      "PROMETHEUS_REMOTE_WRITE=${var.prometheus_remote_write}",
      "PROMETHEUS_CLIENT_ID=${var.prometheus_client_id}",
    ]
    scripts = [
      "${path.root}/scripts/10-system.sh",
      "${path.root}/scripts/20-relay.sh",
      "${path.root}/scripts/21-haproxy.sh",
      "${path.root}/scripts/30-tuning.sh",
      "${path.root}/scripts/40-hardening.sh",
      "${path.root}/scripts/50-updates.sh",
      "${path.root}/scripts/60-azure-monitor.sh",
      "${path.root}/scripts/61-prometheus.sh",
      "${path.root}/scripts/70-sbom.sh",
    ]
  }

  # The new kernel, the settings of sysctl.d, and whatever is to be found out at a boot.
  provisioner "shell" {
    only              = ["azure-arm.ubuntu"]
    inline            = ["sudo systemctl reboot"]
    expect_disconnect = true
  }

  # After that boot, which needed SSH: the next one has none.
  provisioner "shell" {
    pause_before        = "30s"
    start_retry_timeout = "10m"
    execute_command     = "sudo env {{ .Vars }} bash '{{ .Path }}'"
    environment_vars    = ["SSH=${var.ssh}"]
    scripts             = ["${path.root}/scripts/80-ssh.sh"]
  }

  # The checks of `make test-image`, from here over SSH.
  provisioner "shell-local" {
    only = ["azure-arm.ubuntu"]
    environment_vars = [
      "IMAGE=${var.image}",
      "MACHINE_HOST=${build.Host}",
      "MACHINE_PORT=${build.Port}",
      "MACHINE_USER=${build.User}",
      "MACHINE_KEY=${build.SSHPrivateKey}",
    ]
    scripts = ["${path.root}/check.sh"]
  }

  # The bill of materials, to stand beside the image's version.
  provisioner "shell-local" {
    inline = ["mkdir -p '${local.artifacts}'"]
  }
  provisioner "file" {
    direction   = "download"
    source      = "/usr/share/relay-image/"
    destination = "${local.artifacts}/"
  }

  # Last, and in two: a machine that goes on being used keeps its users.
  provisioner "shell" {
    only             = ["null.local"]
    execute_command  = "sudo env {{ .Vars }} bash '{{ .Path }}'"
    environment_vars = ["FILES=/tmp/relay-image", "DEPROVISION=off"]
    scripts          = ["${path.root}/scripts/90-clean-up.sh"]
    skip_clean       = true
  }
  provisioner "shell" {
    only             = ["azure-arm.ubuntu"]
    execute_command  = "sudo env {{ .Vars }} bash '{{ .Path }}'"
    environment_vars = ["FILES=/tmp/relay-image", "DEPROVISION=on"]
    scripts          = ["${path.root}/scripts/90-clean-up.sh"]
    skip_clean       = true
  }

  post-processor "manifest" {
    output     = "${path.root}/artifacts/manifest.json"
    strip_path = true
    custom_data = {
      image         = var.image
      image_version = var.image_version
      arch          = var.arch
      sbom          = local.artifacts
    }
  }
}
