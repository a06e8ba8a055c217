# Whether relay would start with the settings of this machine, as a function for /bin/sh: the install bundle and the
# Debian package ask it before they start or restart the service.
# shellcheck shell=sh

SETTINGS=/etc/relay/relay.toml

# As the service's user reads them: `relay`, or the one that systemd makes up for it, who is nobody's friend.
READ='
import os, pwd, sys
try: user = pwd.getpwnam("relay"); uid, gid = user.pw_uid, user.pw_gid
except KeyError: uid = gid = 65534
os.setgroups([]); os.setgid(gid); os.setuid(uid)
try: open(sys.argv[1], "rb").read()
except OSError as error: sys.exit("%s: %s" % (sys.argv[1], error.strerror.lower()))
'
# PYTHON, of an installation: whether a start with the settings would succeed. What is wrong is printed, and what is
# warned of, such as a deprecated name.
checked() {
    if ! reason=$("$1" -I -c "$READ" $SETTINGS 2>&1); then
        printf '%s\n' "relay: $reason for the service's user; chmod 644 $SETTINGS, and 755 its folder" >&2
        return 1
    fi
    environment=$(sed -n 's/^\(RELAY_[A-Za-z0-9_]*=.*\)/\1/p' /etc/default/relay 2>/dev/null || :)
    (
        if [ -n "$environment" ]; then
            while IFS= read -r line; do
                value=${line#*=}
                case $value in
                \"*\") value=${value#\"} value=${value%\"} ;;
                \'*\') value=${value#\'} value=${value%\'} ;;
                esac
                export "${line%%=*}=$value"
            done <<TEXT
$environment
TEXT
        fi
        if ! said=$("$1" -I -m relay check --config $SETTINGS); then
            exit 1
        fi
        printf '%s\n' "$said" | sed -n 's/^warning: /relay: &/p' >&2
    )
}

in_use() { # FOLDER, of an installation: whether a process runs from it
    for link in /proc/[0-9]*/cmdline; do
        if tr '\0' '\n' 2>/dev/null <"$link" | grep -q "^$1/bin/"; then
            return 0
        fi
    done
    return 1
}
