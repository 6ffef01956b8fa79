#!/usr/bin/env bash
# Makes the folder that the test image of flannel consists of, beside busybox: flannel's programs, what they execute,
# and a plugin in place of flannel's own.
#
#   flannel.sh FOLDER
set -euo pipefail
# shellcheck source=hack/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
folder=$1

# with_libraries PROGRAM as NAME copies a program of this machine and the libraries that it loads.
with_libraries() {
	local program file
	program=$(command -v "$1") || die "$1 is missing"
	install -D "$(readlink -f "$program")" "$folder/usr/sbin/$1"
	ldd "$program" | grep -o '/[^ ]*' | while read -r file; do install -D "$file" "$folder$file"; done
}

install -D "$bin/flannel/flannel" "$folder/opt/bin/flanneld"
install -D "$bin/flannel/install_conf" "$folder/opt/bin/install-conf"
for program in nft iptables ip6tables; do with_libraries "$program"; done

# Like flannel's own plugin it hands the range that flanneld has written to the plugin bridge.
cat >"$folder/flannel" <<'END'
#!/bin/sh
if [ "$CNI_COMMAND" = VERSION ]; then
	echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0"]}'
	exit
fi
if ! [ -e /run/flannel/subnet.env ]; then
	echo '{"cniVersion":"1.0.0","code":999,"msg":"loadFlannelSubnetEnv failed: open /run/flannel/subnet.env: no such file or directory"}'
	exit 1
fi
. /run/flannel/subnet.env
IFS=:
for dir in $CNI_PATH; do
	if [ -x "$dir/bridge" ]; then exec "$dir/bridge" <<CONF; fi
{"cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "bridge": "cni0", "mtu": $FLANNEL_MTU, "hairpinMode": true,
 "isGateway": true, "isDefaultGateway": true, "ipMasq": false,
 "ipam": {"type": "host-local", "dataDir": "/run/flannel/leases", "ranges": [[{"subnet": "${FLANNEL_SUBNET%.*}.0/24"}]],
          "routes": [{"dst": "$FLANNEL_NETWORK"}]}}
CONF
done
echo '{"cniVersion":"1.0.0","code":999,"msg":"no plugin bridge in '"$CNI_PATH"'"}'
exit 1
END
chmod 755 "$folder/flannel"
