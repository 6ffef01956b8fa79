package harness

import (
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Root of a user namespace in these tests, and how many ids it has.
const (
	UserBase  = 1 << 20
	GroupBase = 2 << 20
	IdsEach   = 65536
)

// UserMapping maps the users of a pod with a user namespace.
func UserMapping() []*cri.IDMapping {
	return []*cri.IDMapping{{HostId: UserBase, Length: IdsEach}}
}

// GroupMapping maps its groups.
func GroupMapping() []*cri.IDMapping {
	return []*cri.IDMapping{{HostId: GroupBase, Length: IdsEach}}
}

// InUserNamespace is what a kubelet asks for with hostUsers: false.
func InUserNamespace(c *cri.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: UserMapping(), Gids: GroupMapping()}
}
