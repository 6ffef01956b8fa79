package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/cni/program"
)

// ownType is the plugin type that stands for the default network in a configuration file.
const ownType = "cribox"

const maxConfBytes = 1 << 20 // larger files are refused

// network is the network of one configuration file, or the default network. It is immutable.
type network struct {
	name    string
	file    string // base name of the file; "" = the default network
	needs   []string
	version string
	// ours: one plugin of the chain is our bridge, with these subnets. foreign: one plugin is not
	// ours and may keep a lease.
	ours    bool
	foreign bool
	builtin bool // our bridge is made by this process, not by plugins
	subnets []netip.Prefix
	// chains are indexed by chainIndex. Without our plugin in the file all four are the same chain.
	chains [4]*libcni.NetworkConfigList
}

// chainIndex returns the chain for a pod with or without host ports and a bandwidth: plugins that
// have nothing to do are not run.
func chainIndex(ports, bandwidth bool) int {
	i := 0
	if ports {
		i |= 1
	}
	if bandwidth {
		i |= 2
	}
	return i
}

// delegates are plugins that themselves run the plugin of ipam.type, from the same folders: without
// it every ADD fails.
var delegates = []string{"bridge", "ptp", "macvlan", "ipvlan", "vlan", "host-device", "tap", "dummy"}

// newNetwork returns the network of a file's list, or an error if it must not be executed.
func newNetwork(file string, list *libcni.NetworkConfigList) (*network, error) {
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, err
	}
	if _, _, _, err := version.ParseVersion(list.CNIVersion); err != nil {
		return nil, err
	}
	if len(list.Plugins) == 0 {
		return nil, errors.New("no plugins")
	}
	w := &network{name: list.Name, file: file, version: list.CNIVersion, foreign: true}
	for _, p := range list.Plugins {
		if err := program.CheckName(p.Network.Type); err != nil {
			return nil, err
		}
		w.needs = append(w.needs, p.Network.Type)
		ipam := p.Network.IPAM.Type
		if ipam == "" {
			continue
		}
		if err := program.CheckName(ipam); err != nil {
			return nil, fmt.Errorf("ipam: %w", err)
		}
		if slices.Contains(delegates, p.Network.Type) {
			w.needs = append(w.needs, ipam)
		}
	}
	for i := range w.chains {
		w.chains[i] = list
	}
	return w, nil
}

// parseFile reads one configuration file. Side plugins, <folder>/<network name>/*.conf, are merged
// into the list's bytes, so that these bytes, which are stored for DEL, are complete.
func (f *folder) parseFile(ctx context.Context, name string) (*network, error) {
	data, err := readConf(filepath.Join(f.dir, name))
	if err != nil {
		return nil, err
	}
	list, err := parseList(data)
	if err != nil {
		return nil, err
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, err // must come before the name is used in a path
	}
	if !list.LoadOnlyInlinedPlugins {
		if list, err = f.addSidePlugins(list); err != nil {
			return nil, err
		}
	}
	for _, p := range list.Plugins {
		if p.Network.Type == ownType {
			return f.own.translate(ctx, name, list, f.own.subnets())
		}
	}
	return newNetwork(name, list)
}

// parseList reads a list, or the configuration of a single plugin as a list of one, whatever the
// extension of the file.
func parseList(data []byte) (*libcni.NetworkConfigList, error) {
	var probe struct {
		Type string
	}
	if err := json.Unmarshal(data, &probe); err != nil {
		return nil, err
	}
	if probe.Type == "" {
		return libcni.NetworkConfFromBytes(data)
	}
	single, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	return wrapSingle(single)
}

func wrapSingle(single *libcni.PluginConfig) (*libcni.NetworkConfigList, error) {
	data, err := json.Marshal(map[string]any{
		"name": single.Network.Name, "cniVersion": single.Network.CNIVersion,
		"loadOnlyInlinedPlugins": true, "plugins": []json.RawMessage{single.Bytes},
	})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(data)
}

func (f *folder) addSidePlugins(list *libcni.NetworkConfigList) (*libcni.NetworkConfigList, error) {
	dir := filepath.Join(f.dir, list.Name)
	files, err := libcni.ConfFiles(dir, []string{".conf"})
	if err = notFolder(err); err != nil {
		return nil, unreadableNow(err)
	}
	if len(files) == 0 {
		return list, nil
	}
	var plugins []json.RawMessage
	for _, p := range list.Plugins {
		plugins = append(plugins, p.Bytes)
	}
	for _, file := range files {
		data, err := readConf(file)
		if errors.Is(err, os.ErrNotExist) {
			// The folder listed it a moment ago.
			return nil, fmt.Errorf("%w: %s has just been deleted", errUnreadable, file)
		}
		if err != nil {
			return nil, err
		}
		plugins = append(plugins, data)
	}
	return withPlugins(list, list.Name, plugins)
}

// notFolder ignores the error when a file is where the folder of side plugins would be.
func notFolder(err error) error {
	if errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}

// withPlugins returns list with another name and other plugins; all other keys stay the same.
func withPlugins(list *libcni.NetworkConfigList,
	name string, plugins []json.RawMessage) (*libcni.NetworkConfigList, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(list.Bytes, &raw); err != nil {
		return nil, err
	}
	whole := make(map[string]any, len(raw)+2)
	for k, v := range raw {
		whole[k] = v
	}
	whole["name"], whole["plugins"], whole["loadOnlyInlinedPlugins"] = name, plugins, true
	data, err := json.Marshal(whole)
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(data)
}

// errUnreadable marks the error of an existing file that cannot be read at the moment.
var errUnreadable = errors.New("cannot be read now")

// unreadableNow marks err with errUnreadable, unless err means that there is no such file.
func unreadableNow(err error) error {
	for _, said := range []error{os.ErrNotExist, unix.ENOTDIR, unix.ELOOP, unix.ENXIO, unix.ENAMETOOLONG} {
		if errors.Is(err, said) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", errUnreadable, err)
}

// readConf reads a regular file of limited size. It does not block on a FIFO.
func readConf(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, unreadableNow(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, unreadableNow(err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxConfBytes+1))
	if err != nil {
		return nil, unreadableNow(err)
	}
	if len(data) > maxConfBytes {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, maxConfBytes)
	}
	return bytes.TrimSpace(data), nil
}
