package preflight

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/cribox/cribox/cni"
	"github.com/cribox/cribox/config"
)

func lookNetwork(ctx context.Context, c config.Config) []Finding {
	all := []Finding{lookForwarding("/proc/sys/net/ipv4/ip_forward")}
	if c.Network.Default {
		all = append(all, lookDefault(c.Network.BinDirs, cni.ProbeNftables(ctx, c.Instance()))...)
	}
	all = append(all, lookPlugins(ctx, c.Network.BinDirs)...)
	all = append(all, lookAdvertisements(ipv6Pods(c), cni.DeafUplinks)...)
	if err := networkReady(ctx, c); err != nil {
		return append(all, Finding{What: "no network for pods yet: " + err.Error(),
			Remedy: remedyNetwork(c)})
	}
	return append(all, Finding{What: "network for pods"})
}

// lookDefault returns what the default network lacks on a kernel that refuses nftables for the given
// reason: there it needs plugins.
func lookDefault(dirs []string, refusal error) []Finding {
	if refusal == nil {
		return []Finding{{What: "nftables for the default network"}}
	}
	all := []Finding{{What: "the default network runs plugins for each pod, which takes more time: " + refusal.Error(),
		Remedy: "a kernel with nf_tables, nft_chain_nat, nft_masq and nft_fib_inet, as those of distributions"}}
	for _, plugin := range []string{"bridge", "host-local", "portmap"} {
		if !hasPlugin(dirs, plugin) {
			all = append(all, Finding{What: "no CNI plugin " + plugin + " in " + strings.Join(dirs, ":"), Fatal: true,
				Remedy: "install the CNI plugins (Debian: containernetworking-plugins), or set network.bin_dirs"})
		}
	}
	return all
}

func remedyNetwork(c config.Config) string {
	if c.Network.Default && c.Network.Subnet == cni.PodCIDR {
		return "the kubelet sets the range once the cluster has assigned one to the node"
	}
	return "a network add-on will write one to " + c.Network.ConfDir + ", or set network.default = true"
}

// networkReady checks the network with a temporary root and state folder, because a daemon may be
// using the configured ones. It uses a copy of the pod CIDR that the kubelet set.
func networkReady(ctx context.Context, c config.Config) error {
	scratch, err := os.MkdirTemp("", "cribox-check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	instance := c.Instance()
	named := cni.PodCIDRFile(c.State)
	c.Root, c.State = filepath.Join(scratch, "root"), filepath.Join(scratch, "state")
	b, err := os.ReadFile(named)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err == nil {
		mine := cni.PodCIDRFile(c.State)
		if err := errors.Join(os.MkdirAll(filepath.Dir(mine), 0o700), os.WriteFile(mine, b, 0o600)); err != nil {
			return err
		}
	}
	wanted, err := c.CNI()
	if err != nil {
		return err
	}
	wanted.Instance = instance
	network, err := cni.Open(ctx, wanted)
	if err != nil {
		return err
	}
	return network.Ready()
}

func lookForwarding(path string) Finding {
	b, err := os.ReadFile(path)
	if err != nil {
		return Finding{What: "cannot read whether the host forwards IPv4: " + err.Error(), Remedy: "mount /proc"}
	}
	if strings.TrimSpace(string(b)) != "1" {
		return Finding{What: "the host does not forward IPv4: pods reach each other but nothing beyond the node",
			Remedy: "sysctl -w net.ipv4.ip_forward=1"}
	}
	return Finding{What: "IPv4 forwarding"}
}

// ipv6Pods reports whether the host forwards IPv6, or will do so for the default network.
func ipv6Pods(c config.Config) bool {
	named, err := os.ReadFile(cni.PodCIDRFile(c.State))
	return cni.ForwardsIPv6() || strings.Contains(c.Network.Subnet, ":") || err == nil &&
		strings.Contains(string(named), ":")
}

// lookAdvertisements returns a finding for each uplink that loses its IPv6 router when the host
// forwards IPv6 for pods.
func lookAdvertisements(forwards bool, deaf func() ([]string, error)) []Finding {
	if !forwards {
		return nil
	}
	links, err := deaf()
	if err != nil {
		return []Finding{{What: "cannot read how this host learns its IPv6 router: " + err.Error(),
			Remedy: "mount /proc, and run as root"}}
	}
	var all []Finding
	for _, link := range links {
		key := "net.ipv6.conf." + strings.ReplaceAll(link, ".", "/") + ".accept_ra"
		all = append(all, Finding{
			What: link + " learns its IPv6 router from advertisements; a host that forwards IPv6 for pods " +
				"ignores them and loses its router some minutes later",
			Remedy: "sysctl -w " + key + "=2, and set it in /etc/sysctl.d too; " +
				"0 is right if another program handles advertisements",
		})
	}
	return all
}
