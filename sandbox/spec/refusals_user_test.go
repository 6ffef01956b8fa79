package spec

import (
	"bytes"
	_ "embed"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/users"
)

//go:embed users/testdata/passwd
var passwd []byte

//go:embed users/testdata/group
var group []byte

type securityContext = runtimeapi.LinuxContainerSecurityContext

func id(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }

// userRefusals are the users that a container cannot have: of its image, or of the request.
var userRefusals = []struct {
	name   string
	image  string // its USER
	change func(*securityContext)
	want   string
	peer   peer
	why    string
}{
	{"a name that the image does not have", "nobody-knows", nil, `image user: the image has no user "nobody-knows"`, same, ""},
	{"a group that the image does not have", "app:nobody-knows", nil, `image user: the image has no group "nobody-knows"`, same, ""},
	{"a sign before digits", "+4711", nil, "the image has no user", runs, ambiguous},
	{"an id beyond 31 bits", "2147483648", nil, "is not a number between 0 and 2147483647", same, ""},
	{"a group beyond 31 bits", "app:4294967296", nil, "is not a number between 0 and 2147483647", same, ""},
	{"an id beyond 32 bits in the image's passwd", "svc", nil, "passwd file of the image: uid of svc", runs, lessThanAsked},
	{"no id in the image's passwd", "empty", nil, "passwd file of the image: uid of empty", runs, lessThanAsked},
	{"a group beyond 32 bits in the image's passwd", "grp", nil, "passwd file of the image: gid of grp", runs, lessThanAsked},
	{"a group beyond 32 bits in the image's group file", "app:big", nil, "group file of the image: gid of big", runs, lessThanAsked},
	{"id and name", "", func(sc *securityContext) { sc.RunAsUser, sc.RunAsUsername = id(1), "app" }, "run_as_username: is set together with run_as_user", runs, ambiguous},
	{"a group alone", "", func(sc *securityContext) { sc.RunAsGroup = id(1) }, "run_as_group: is set without", same, ""},
	{"a name of two lines", "", func(sc *securityContext) { sc.RunAsUsername = "a\nb" }, "is not a user name", same, ""},
	{"a negative id", "", func(sc *securityContext) { sc.RunAsUser = id(-1) }, "run_as_user: -1 is not between", same, ""},
	{"more groups than the kernel takes", "", func(sc *securityContext) { sc.SupplementalGroups = make([]int64, 65536+1) }, "supplemental_groups: are 65537", late, ""},
	{"a policy that is none", "", func(sc *securityContext) { sc.SupplementalGroupsPolicy = 9 }, "supplemental_groups_policy: 9 is unknown", same, ""},
}

func TestEveryUserRefusal(t *testing.T) {
	sources := refusalsIn(t, func(file string) bool { return file == "users/users.go" })
	hit := make([]bool, len(sources))
	try := func(name, want string, err error) {
		if err == nil || !strings.Contains(err.Error(), want) || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want %q", name, err, want)
			return
		}
		for i, s := range sources {
			hit[i] = hit[i] || s.text.MatchString(err.Error())
		}
	}
	for _, r := range userRefusals {
		sc := &securityContext{}
		if r.change != nil {
			r.change(sc)
		}
		_, err := users.Resolve(r.image, sc, passwd, group)
		try(r.name, r.want, err)
		if accepted := r.peer == runs || r.peer == blind; accepted != (r.why != "") {
			t.Errorf("%s: containerd %s, and the reason is %q", r.name, r.peer, r.why)
		}
	}
	var many bytes.Buffer
	for i := range 65536 + 1 {
		fmt.Fprintf(&many, "g%d:x:%d:app\n", i, i+2000)
	}
	_, err := users.Resolve("app", nil, passwd, many.Bytes())
	try("more groups in the image's file than the kernel takes", "with those of the image", err)
	for i, s := range sources {
		if !hit[i] {
			t.Errorf("%s: no row has this refusal, %s. Does containerd run such a container? Then it should run, unless that is dangerous", s.at, s.text)
		}
	}
}
