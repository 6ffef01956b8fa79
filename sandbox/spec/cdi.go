package spec

import (
	"maps"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"github.com/cribox/cribox/sandbox/spec/check"
)

// cdiAnnotation begins the names of annotations in which device plugins ask for CDI devices, as
// they did before CDI_devices.
const cdiAnnotation = "cdi.k8s.io/"

// CDIDevices returns the names of the CDI devices that a container asks for, each once: those of
// CDI_devices, then those of its annotations. Annotations of its pod, which anybody can write, are
// not looked at.
func CDIDevices(c *runtimeapi.ContainerConfig) []string {
	var names []string
	seen := map[string]bool{}
	for _, d := range askedCDIDevices(c) {
		if !seen[d.name] {
			names = append(names, d.name)
		}
		seen[d.name] = true
	}
	return names
}

type cdiDevice struct{ field, name string }

func askedCDIDevices(c *runtimeapi.ContainerConfig) []cdiDevice {
	var all []cdiDevice
	for _, d := range c.GetCDIDevices() {
		all = append(all, cdiDevice{"CDI_devices.name", d.GetName()})
	}
	for _, key := range slices.Sorted(maps.Keys(c.GetAnnotations())) {
		if !strings.HasPrefix(key, cdiAnnotation) {
			continue
		}
		for name := range strings.SplitSeq(c.GetAnnotations()[key], ",") {
			all = append(all, cdiDevice{"annotations." + check.Truncate(key), name})
		}
	}
	return all
}

func checkCDIDevices(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, _ Host) error {
	for _, d := range askedCDIDevices(c) {
		if err := check.Text(d.field, d.name, check.MaxName); err != nil {
			return err
		}
		if _, _, _, err := parser.ParseQualifiedName(d.name); err != nil {
			return check.Invalid(d.field, "%q is not VENDOR/CLASS=NAME: %v", check.Truncate(d.name), err)
		}
	}
	return nil
}
