#!/bin/sh
# The life of the package in a root of its own: installed, upgraded, removed, purged. Runs
# as the first process of its namespaces. systemctl is a stub that notes what it is asked,
# and so is homing, in front of the one that is installed.
set -eu

die() { echo "FAILED: $*" >&2; cat /calls >&2; exit 1; }

# Contained, or not begun.
[ -f /root-of-a-test ] || exit 99
[ $$ -eq 1 ] || exit 98
[ "$(ls -A /sys)" = "" ] || exit 97
[ ! -e /run/systemd ] || exit 96

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
mkdir -p /run/systemd/system /usr/local/sbin

# Whether the agent runs is whether there is a file.
cat >/usr/local/sbin/systemctl <<'STUB'
#!/bin/sh
echo "systemctl $*" >>/calls
case "$*" in
*is-active*) [ -f /runs ] ;;
*is-enabled*) if [ -L /etc/systemd/system/multi-user.target.wants/homing.service ]; then echo enabled; else echo disabled; fi ;;
*stop*) rm -f /runs ;;
esac
STUB
cat >/usr/local/sbin/homing <<'STUB'
#!/bin/sh
echo "homing $*" >>/calls
exec /usr/bin/homing "$@"
STUB
chmod 755 /usr/local/sbin/*

begin() { echo "-- $*"; : >/calls; }
called() { grep -q -- "$1" /calls || die "no call: $1"; }
not_called() { ! grep -q -- "$1" /calls || die "call: $1"; }
before() {
    first=$(grep -n -m1 -- "$1" /calls | cut -d: -f1)
    second=$(grep -n -m1 -- "$2" /calls | cut -d: -f1)
    [ "$first" -lt "$second" ] || die "$2 came before $1"
}

begin "installed: nothing is started, for the configuration is the example"
dpkg -i /new/*-1_*.deb >/log 2>&1 || die "$(cat /log)"
called daemon-reload
not_called " restart"
not_called " start"
[ ! -e /etc/systemd/system/multi-user.target.wants/homing.service ] || die "enabled"
grep -q "systemctl enable --now homing" /log || die "does not say what to do"
/usr/bin/homing agent --check-config >/dev/null || die "the example is refused"
[ -z "$(dpkg -V homing)" ] || die "$(dpkg -V homing)"

# An operator does his part.
sed -i 's/^id = 1$/id = 7/' /etc/homing/homing.toml
echo secret >/etc/homing/pop.key
mkdir -p /etc/systemd/system/multi-user.target.wants
ln -s /usr/lib/systemd/system/homing.service /etc/systemd/system/multi-user.target.wants/
: >/runs

begin "upgraded: restarted once the new version is in place, and never stopped"
dpkg -i /new/*-2_*.deb >/log 2>&1 || die "$(cat /log)"
called "restart homing.service"
before daemon-reload "restart homing.service"
before "homing agent --check-config" "restart homing.service"
not_called " stop"
not_called "homing unload"
grep -q '^id = 7$' /etc/homing/homing.toml || die "the configuration is gone"
[ -f /etc/homing/pop.key ] || die "the key is gone"

begin "a configuration that this version refuses: the agent that runs goes on"
sed -i 's/^id = 7$/id = "seven"/' /etc/homing/homing.toml
dpkg -i /new/*-1_*.deb >/log 2>&1 || die "$(cat /log)"
not_called "restart"
not_called " stop"
grep -q "the agent is not restarted" /log || die "does not say so"
grep -q "host.id" /log || die "does not say why"
sed -i 's/^id = "seven"$/id = 7/' /etc/homing/homing.toml

begin "an agent that does not run is not started"
rm /runs
dpkg -i /new/*-2_*.deb >/log 2>&1 || die "$(cat /log)"
not_called " restart"
not_called " start"
: >/runs

begin "removed: the kernel side goes while the binary is there, configuration and key stay"
dpkg -r homing >/log 2>&1 || die "$(cat /log)"
called "homing unload"
called "stop homing.service"
before "homing unload" "stop homing.service"
[ ! -e /usr/bin/homing ] || die "the binary is there"
[ -f /etc/homing/homing.toml ] || die "the configuration is gone"
[ -f /etc/homing/pop.key ] || die "the key is gone"

begin "installed again and removed where no systemd runs: nothing is touched"
rm -r /run/systemd
dpkg -i /new/*-2_*.deb >/log 2>&1 || die "$(cat /log)"
grep -q '^id = 7$' /etc/homing/homing.toml || die "the configuration is gone"
dpkg -r homing >/log 2>&1 || die "$(cat /log)"
not_called "homing unload"
not_called "systemctl"

begin "purged: nothing is left"
dpkg -P homing >/log 2>&1 || die "$(cat /log)"
rm -f /etc/systemd/system/multi-user.target.wants/homing.service
left=$(find / -xdev -iname '*homing*' ! -path '/new/*' ! -path '/usr/local/*' ! -path '/proc/*')
[ -z "$left" ] || die "left: $left"
! dpkg -s homing >/dev/null 2>&1 || die "dpkg knows it"
echo "all is well"
