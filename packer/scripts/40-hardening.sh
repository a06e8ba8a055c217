#!/usr/bin/env bash
# Hardening, by the numbers of the CIS Ubuntu Linux 24.04 LTS Benchmark v1.0.0 (Center for Internet Security,
# 2024-08-26); the numbers are taken from ComplianceAsCode/content, controls/cis_ubuntu2404.yml. Each number here has a
# check of its own in tests/image/checks/test_hardening.py. What is left out of the benchmark, and why, is in
# docs/how-to/bake-the-image.md. This is our selection, and no certification.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1

# --- packages ---------------------------------------------------------------------------------------------------------

# CIS 1.5.4 prelink, 1.5.5 apport; servers: 2.1.12 rpcbind, 2.1.13 rsync, 2.1.18 web servers, 2.1.19 xinetd; clients:
# 2.2.1 NIS, 2.2.2 rsh, 2.2.3 talk, 2.2.4 telnet, 2.2.5 LDAP, 2.2.6 FTP.
unwanted=(prelink apport rpcbind rsync apache2 nginx xinetd nis ypbind-mt rsh-client talk telnet inetutils-telnet
    ldap-utils ftp tnftp)
installed=()
for package in "${unwanted[@]}"; do
    if dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed; then
        installed+=("$package")
    fi
done
if [ ${#installed[@]} -gt 0 ]; then
    apt-get --yes --quiet --option DPkg::Lock::Timeout=600 --option Dpkg::Use-Pty=0 purge "${installed[@]}"
fi
# Here, and not with the clean-up: what goes must not be in the SBOM.
apt-get --yes --quiet --option DPkg::Lock::Timeout=600 --option Dpkg::Use-Pty=0 autoremove --purge

# --- kernel modules ---------------------------------------------------------------------------------------------------

# Filesystems: CIS 1.1.1.1 cramfs, 1.1.1.2 freevxfs, 1.1.1.3 hfs, 1.1.1.4 hfsplus, 1.1.1.5 jffs2, 1.1.1.9 usb-storage.
# Protocols: CIS 3.2.1 dccp, 3.2.2 tipc, 3.2.3 rds, 3.2.4 sctp.
{
    echo "# Never loaded, neither by hand nor by an alias; packer/scripts/40-hardening.sh has the rule of each."
    for module in cramfs freevxfs hfs hfsplus jffs2 usb-storage dccp tipc rds sctp; do
        printf 'install %s /bin/false\nblacklist %s\n' "$module" "$module"
    done
} >/etc/modprobe.d/relay-hardening.conf

# --- kernel settings --------------------------------------------------------------------------------------------------

install -d /etc/sysctl.d
cat >/etc/sysctl.d/70-relay-hardening.conf <<'TEXT'
# CIS 1.5.1
kernel.randomize_va_space = 2
# CIS 1.5.2
kernel.yama.ptrace_scope = 1
# CIS 1.5.3, with /etc/security/limits.d/70-relay-hardening.conf
fs.suid_dumpable = 0
# CIS 3.3.1
net.ipv4.ip_forward = 0
net.ipv6.conf.all.forwarding = 0
# CIS 3.3.2
net.ipv4.conf.all.send_redirects = 0
net.ipv4.conf.default.send_redirects = 0
# CIS 3.3.3
net.ipv4.icmp_ignore_bogus_error_responses = 1
# CIS 3.3.4
net.ipv4.icmp_echo_ignore_broadcasts = 1
# CIS 3.3.5
net.ipv4.conf.all.accept_redirects = 0
net.ipv4.conf.default.accept_redirects = 0
net.ipv6.conf.all.accept_redirects = 0
net.ipv6.conf.default.accept_redirects = 0
# CIS 3.3.6
net.ipv4.conf.all.secure_redirects = 0
net.ipv4.conf.default.secure_redirects = 0
# CIS 3.3.7. With addresses on several interfaces (dial.source_addresses), each interface needs its own route back.
net.ipv4.conf.all.rp_filter = 1
net.ipv4.conf.default.rp_filter = 1
# CIS 3.3.8
net.ipv4.conf.all.accept_source_route = 0
net.ipv4.conf.default.accept_source_route = 0
net.ipv6.conf.all.accept_source_route = 0
net.ipv6.conf.default.accept_source_route = 0
# CIS 3.3.9
net.ipv4.conf.all.log_martians = 1
net.ipv4.conf.default.log_martians = 1
# CIS 3.3.10
net.ipv4.tcp_syncookies = 1
TEXT
install -d /etc/security/limits.d
echo '* hard core 0' >/etc/security/limits.d/70-relay-hardening.conf

# --- services ---------------------------------------------------------------------------------------------------------

# CIS 6.1.2.2, 6.1.2.3, 6.1.2.4. Late in the alphabet: Ubuntu's own syslog.conf turns forwarding on, and
# 60-azure-monitor.sh does so again where an agent reads syslog.
install -d /etc/systemd/journald.conf.d
cat >/etc/systemd/journald.conf.d/z-relay-hardening.conf <<'TEXT'
[Journal]
ForwardToSyslog=no
Compress=yes
Storage=persistent
TEXT
# CIS 6.1.1.4: the journal is the one log.
if [ -e /usr/lib/systemd/system/rsyslog.service ]; then
    systemctl disable --quiet rsyslog.service
fi

# CIS 5.1: for where SSH is turned on (80-ssh.sh). sshd takes the first value that it reads: before cloud-init's 50.
if [ -d /etc/ssh ]; then
    install -d /etc/ssh/sshd_config.d
    cat >/etc/ssh/sshd_config.d/10-relay-hardening.conf <<'TEXT'
# CIS 5.1.7
ClientAliveInterval 15
ClientAliveCountMax 3
# CIS 5.1.8
DisableForwarding yes
# CIS 5.1.9
GSSAPIAuthentication no
# CIS 5.1.10
HostbasedAuthentication no
# CIS 5.1.11
IgnoreRhosts yes
# CIS 5.1.13
LoginGraceTime 60
# CIS 5.1.14
LogLevel INFO
# CIS 5.1.16
MaxAuthTries 4
# CIS 5.1.17
MaxSessions 10
# CIS 5.1.18
MaxStartups 10:30:60
# CIS 5.1.19
PermitEmptyPasswords no
# CIS 5.1.20
PermitRootLogin no
# CIS 5.1.21
PermitUserEnvironment no
# CIS 5.1.22
UsePAM yes
# Ours: keys only.
PasswordAuthentication no
KbdInteractiveAuthentication no
TEXT
    # CIS 5.1.1
    chown root:root /etc/ssh/sshd_config
    chmod 600 /etc/ssh/sshd_config /etc/ssh/sshd_config.d/10-relay-hardening.conf
fi

# --- accounts and files -----------------------------------------------------------------------------------------------

# CIS 5.2.2, 5.2.3
install -d -m 750 /etc/sudoers.d
printf 'Defaults use_pty\nDefaults logfile="/var/log/sudo.log"\n' >/etc/sudoers.d/70-relay-hardening
chmod 440 /etc/sudoers.d/70-relay-hardening
# CIS 5.4.2.4
passwd --quiet --lock root
# CIS 1.6.2, 1.6.3 and 1.6.5, 1.6.6: nothing about the system before a login.
for banner in /etc/issue /etc/issue.net; do
    echo "Authorized use only." >$banner
    chown root:root $banner
    chmod 644 $banner
done
# CIS 7.1.1, 7.1.3, 7.1.5, 7.1.7, 7.1.9
chown root:root /etc/passwd /etc/group /etc/shells
chmod 644 /etc/passwd /etc/group /etc/shells
chown root:shadow /etc/shadow /etc/gshadow
chmod 640 /etc/shadow /etc/gshadow
# CIS 2.4.1.2 to 2.4.1.7
if [ -e /etc/crontab ]; then chmod 600 /etc/crontab; fi
for folder in hourly daily weekly monthly d; do
    if [ -d "/etc/cron.$folder" ]; then chmod 700 "/etc/cron.$folder"; fi
done
