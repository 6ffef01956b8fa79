// Package users finds out who the first process of a container is, by the request, the image and the
// image's passwd and group files; it opens no file.
package users

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
)

// maxGroups is what setgroups(2) takes.
const maxGroups = 65536

// MaxFile is the size in bytes of a passwd or group file above which the caller refuses to read it.
// The author of the image decides how large they are.
const MaxFile = 10 << 20

// User is who the first process of a container is.
type User struct {
	UID, GID uint32
	// AdditionalGIDs always holds GID, first.
	AdditionalGIDs []uint32
	// Username as the image's passwd has it; "" when it is not there.
	Username string
	// Home as the image's passwd has it; "/" when it is not there.
	Home string
	// Notes say what of the image's files could not be used as it is.
	Notes []check.Note
}

// OfImage returns whom an image's USER names: an id, or a name that its passwd file must have. An
// image that names nobody has neither. Resolve reads the same string in the same way.
func OfImage(user string) (uid *uint32, name string) {
	who, _, _ := strings.Cut(user, ":")
	if !check.IsNumber(who) {
		return nil, who
	}
	id, err := parseID("image user", who)
	if err != nil {
		return nil, who // which Resolve refuses
	}
	return &id, ""
}

// Resolve returns who the first process of a container is. imageUser is the image's USER ("",
// "user", "user:group", by name or number), passwd and group are the files of its root filesystem,
// empty when it has none.
//
// Digits are a number, and are never looked up as a name. Everything else is a name, which the image
// must have. ErrInvalidArgument are: ids beyond 31 bits, names that the image does not have, and a
// request with both a user id and a user name, or with a group alone.
func Resolve(imageUser string, sc *runtimeapi.LinuxContainerSecurityContext, passwd, group []byte) (User, error) {
	if err := Check(sc); err != nil {
		return User{}, err
	}
	var who, primary string
	field := "image user"
	switch {
	case sc.GetRunAsUser() != nil:
		field, who = "security_context.run_as_user", strconv.FormatInt(sc.GetRunAsUser().GetValue(), 10)
	case sc.GetRunAsUsername() != "":
		field, who = "security_context.run_as_username", sc.GetRunAsUsername()
	default:
		who, primary, _ = strings.Cut(imageUser, ":")
	}
	if sc.GetRunAsGroup() != nil {
		primary = strconv.FormatInt(sc.GetRunAsGroup().GetValue(), 10)
	}
	u, err := findUser(field, who, passwd)
	if err != nil {
		return User{}, err
	}
	if who == "" && imageUser != "" && field == "image user" {
		u.note(field, "%q names no user; root is used instead", check.Truncate(imageUser))
	}
	if primary != "" {
		if u.GID, err = findGroup(field, primary, group); err != nil {
			return User{}, err
		}
	}
	return withGroups(u, sc, group)
}

func (u *User) note(field, format string, args ...any) {
	u.Notes = append(u.Notes, check.Notef(field, format, args...))
}

// withGroups adds the additional groups: first the primary group, because without it setgroups(2)
// would take it away and files that deny this group would open; then those of the image, unless the
// policy is Strict; then those of the request.
func withGroups(u User, sc *runtimeapi.LinuxContainerSecurityContext, group []byte) (User, error) {
	u.AdditionalGIDs = []uint32{u.GID}
	seen := map[uint32]bool{u.GID: true}
	add := func(gid uint32) error {
		if seen[gid] {
			return nil
		}
		if len(u.AdditionalGIDs) >= maxGroups {
			return check.Invalid("security_context.supplemental_groups", "are more than %d with those of the image", maxGroups)
		}
		seen[gid] = true
		u.AdditionalGIDs = append(u.AdditionalGIDs, gid)
		return nil
	}
	if sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Merge && u.Username != "" {
		for line := range bytes.Lines(group) {
			f := fields(line, 4)
			if len(f) < 4 || !member(f[3], u.Username) {
				continue
			}
			gid, err := parseID("", string(f[2]))
			if err != nil { // it names no group that somebody could be in
				u.note("image group", "%q has no valid number in the image's group file and was left out",
					check.Truncate(string(f[0])))
				continue
			}
			if err := add(gid); err != nil {
				return User{}, err
			}
		}
	}
	for _, g := range sc.GetSupplementalGroups() {
		if err := add(uint32(g)); err != nil {
			return User{}, err
		}
	}
	return u, nil
}

// findUser looks a user up in passwd. A number need not be there, a name must.
func findUser(field, who string, passwd []byte) (User, error) {
	if who == "" {
		who = "0"
	}
	u, numeric := User{Home: "/"}, check.IsNumber(who)
	if numeric {
		var err error
		if u.UID, err = parseID(field, who); err != nil {
			return User{}, err
		}
		who = strconv.FormatUint(uint64(u.UID), 10)
	}
	for line := range bytes.Lines(passwd) {
		f := fields(line, 7)
		if len(f) < 3 || len(f[0]) == 0 {
			continue
		}
		if numeric && string(f[2]) != who || !numeric && string(f[0]) != who {
			continue
		}
		return fromPasswd(f)
	}
	if !numeric {
		return User{}, check.Invalid(field, "the image has no user %q", check.Truncate(who))
	}
	return u, nil
}

// fromPasswd reads a line of three fields or more. A user without a group has group 0, as in
// containerd; a user without a number is an error.
func fromPasswd(f [][]byte) (User, error) {
	name := check.Truncate(string(f[0]))
	uid, err := parseID("passwd file of the image: uid of "+name, string(f[2]))
	if err != nil {
		return User{}, err
	}
	u := User{UID: uid, Username: string(f[0]), Home: "/"}
	var gid string
	if len(f) > 3 {
		gid = string(f[3])
	}
	if _, err := strconv.ParseInt(gid, 10, 64); errors.Is(err, strconv.ErrSyntax) {
		u.note("image user", "%q has no group number in the image's passwd file; group 0 is used instead", name)
	} else if u.GID, err = parseID("passwd file of the image: gid of "+name, gid); err != nil {
		return User{}, err
	}
	// What an image writes there ends up in an environment.
	if len(f) > 5 && len(f[5]) <= check.MaxPath && bytes.HasPrefix(f[5], []byte("/")) &&
		!bytes.ContainsFunc(f[5], check.IsControl) {
		u.Home = string(f[5])
	}
	return u, nil
}

func findGroup(field, name string, group []byte) (uint32, error) {
	if check.IsNumber(name) {
		return parseID(field, name)
	}
	for line := range bytes.Lines(group) {
		if f := fields(line, 4); len(f) > 2 && string(f[0]) == name {
			return parseID("group file of the image: gid of "+check.Truncate(name), string(f[2]))
		}
	}
	return 0, check.Invalid(field, "the image has no group %q", check.Truncate(name))
}

// fields splits a line of passwd or group into at most n fields; nil for an empty line or a comment.
func fields(line []byte, n int) [][]byte {
	line = bytes.TrimSpace(line)
	if len(line) == 0 || line[0] == '#' {
		return nil
	}
	return bytes.SplitN(line, []byte(":"), n)
}

func member(list []byte, name string) bool {
	for len(list) > 0 {
		var m []byte
		m, list, _ = bytes.Cut(list, []byte(","))
		if string(m) == name {
			return true
		}
	}
	return false
}

func parseID(field, s string) (uint32, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if !check.IsNumber(s) || err != nil || n > check.MaxID {
		return 0, check.Invalid(field, "%q is not a number between 0 and %d", check.Truncate(s), check.MaxID)
	}
	return uint32(n), nil
}

// Check checks what of the request can be checked without the image.
func Check(sc *runtimeapi.LinuxContainerSecurityContext) error {
	const field = "security_context."
	if sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "" {
		return check.Invalid(field+"run_as_username", "is set together with run_as_user")
	}
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "" {
		return check.Invalid(field+"run_as_group", "is set without run_as_user or run_as_username")
	}
	if name := sc.GetRunAsUsername(); len(name) > check.MaxName || strings.ContainsFunc(name, check.IsControl) {
		return check.Invalid(field+"run_as_username", "%q is not a user name", check.Truncate(name))
	}
	if err := check.ID(field+"run_as_user", sc.GetRunAsUser().GetValue()); err != nil {
		return err
	}
	if err := check.ID(field+"run_as_group", sc.GetRunAsGroup().GetValue()); err != nil {
		return err
	}
	return CheckGroups(sc.GetSupplementalGroups(), sc.GetSupplementalGroupsPolicy())
}

// CheckGroups checks the additional groups of a request.
func CheckGroups(groups []int64, policy runtimeapi.SupplementalGroupsPolicy) error {
	const field = "security_context.supplemental_groups"
	if len(groups) > maxGroups {
		return check.Invalid(field, "are %d; the kernel's limit is %d", len(groups), maxGroups)
	}
	for _, g := range groups {
		if err := check.ID(field, g); err != nil {
			return err
		}
	}
	known := []runtimeapi.SupplementalGroupsPolicy{runtimeapi.SupplementalGroupsPolicy_Merge,
		runtimeapi.SupplementalGroupsPolicy_Strict}
	if !slices.Contains(known, policy) {
		return check.Invalid(field+"_policy", "%d is unknown", policy)
	}
	return nil
}
