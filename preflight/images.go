package preflight

import (
	"context"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/imageservice"
)

// lookImages looks at the files that decide whether an image can be pulled. Each is read anew at a
// pull, so what is wrong here can be put right without a restart.
func lookImages(_ context.Context, c config.Config) (all []Finding) {
	present, problems := imageservice.CheckCredentials(c.Images.Credentials, c.Images.HelpersDir)
	for _, err := range problems {
		all = append(all, Finding{What: "credentials of the node: " + err.Error(),
			Remedy: "correct it: docker's format, mode 0600, and helpers in images.credential_helpers_dir or PATH"})
	}
	if present && len(problems) == 0 {
		all = append(all, Finding{What: "credentials of the node in " + c.Images.Credentials})
	}
	if c.Images.SignaturePolicy == "" {
		return all
	}
	problems = imageservice.CheckPolicy(c.Images.SignaturePolicy)
	for _, err := range problems {
		all = append(all, Finding{What: err.Error(),
			Remedy: "correct it: until then, pulls that it is needed for are refused (docs/signatures.md)"})
	}
	if len(problems) == 0 {
		all = append(all, Finding{What: "signature policy " + c.Images.SignaturePolicy})
	}
	return all
}
