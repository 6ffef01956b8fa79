package preflight

import (
	"context"
	"os"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/sandbox"
)

func lookAppArmor(context.Context, config.Config) []Finding {
	if !sandbox.HasAppArmor() {
		return []Finding{{What: "no AppArmor in this kernel: requests for a profile will be refused"}}
	}
	return []Finding{appArmorFinding(sandbox.AppArmorParser())}
}

// appArmorFinding reports whether containers without a profile of their own get the default
// profile.
func appArmorFinding(parser string, err error) Finding {
	if err != nil {
		return Finding{What: "AppArmor without apparmor_parser: containers without a profile run unconfined, " +
			"and RuntimeDefault is refused",
			Remedy: "install the package apparmor and restart cribox"}
	}
	return Finding{What: "AppArmor, with " + parser + " to load the default profile"}
}

func lookSELinux(_ context.Context, c config.Config) []Finding {
	switch {
	case !sandbox.HasSELinux():
		return nil
	case !c.Containers.SELinux:
		return []Finding{{What: "SELinux is on, but cribox labels nothing",
			Remedy: "set selinux = true in [containers] unless this is intended"}}
	case !sandbox.SELinuxKnowsContainers():
		return []Finding{{What: "SELinux is on, but its policy knows no containers: pods are not labelled",
			Remedy: "install container-selinux, or on Debian the module container of selinux-policy-src"}}
	}
	return []Finding{{What: "SELinux: pods are labelled"}}
}

// lookAbilities reports optional features of this machine. Requests that need a missing one are
// refused.
func lookAbilities(context.Context, config.Config) []Finding {
	h, err := sandbox.ReadHost()
	if err != nil {
		return []Finding{{What: "this machine: " + err.Error(), Remedy: "mount /proc", Fatal: true}}
	}
	return []Finding{
		ability(h.MemorySwapAccounting, "swap limits", "boot with swapaccount=1"),
		ability(h.RecursiveReadOnly, "recursive read-only mounts", "use Linux 5.12 or newer"),
		ability(h.AppArmor, "AppArmor", ""),
		ability(h.SELinux, "SELinux", ""),
	}
}

// ability returns a finding for an optional feature. A missing feature without a remedy is not
// reported as a flaw: AppArmor and SELinux, for example, exclude each other.
func ability(have bool, what, remedy string) Finding {
	if have {
		return Finding{What: what}
	}
	return Finding{What: "no " + what, Remedy: remedy}
}

func lookUserNamespaces(_ context.Context, c config.Config) []Finding {
	noTmpfs, err := sandbox.CheckUserNamespaces(func(userNS *os.File) error {
		return imageservice.CheckHostIDMap(c.Root,
			userNS)
	})
	if err != nil {
		return []Finding{{What: "no user namespaces for pods: " + err.Error(),
			Remedy: "use Linux 6.5 or newer, root on ext4, xfs or btrfs, and user.max_user_namespaces above 0"}}
	}
	if noTmpfs != nil {
		return []Finding{{What: "user namespaces are not offered to the kubelet: " + noTmpfs.Error(),
			Remedy: "use Linux 6.3 or newer"}}
	}
	return []Finding{{What: "user namespaces, images and tmpfs with mapped ids"}}
}
