package signature

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

const maxKeyFile = 64 << 10

// load reads the keys or the trusted root of a rule. A relative path begins at the folder of
// the policy.
func (r *Rule) load(folder string) error {
	if r.Require == keyless {
		return r.loadRoot(folder)
	}
	for _, path := range r.Keys {
		if !filepath.IsAbs(path) {
			path = filepath.Join(folder, path)
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
		f.Close()
		if err != nil {
			return err
		}
		keys, err := parseKeys(b)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		r.keys = append(r.keys, keys...)
	}
	return nil
}

// parseKeys decodes public keys in PEM, as cosign generate-key-pair and openssl write them.
func parseKeys(b []byte) (keys []crypto.PublicKey, err error) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("it has a %s, not a PUBLIC KEY", block.Type)
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		switch k := key.(type) {
		case *ecdsa.PublicKey, ed25519.PublicKey:
		case *rsa.PublicKey:
			if k.N.BitLen() < 2048 {
				return nil, fmt.Errorf("an RSA key of %d bits is too short", k.N.BitLen())
			}
		default:
			return nil, fmt.Errorf("a key of type %T cannot be used: ECDSA, RSA and Ed25519 can", key)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("it has no PUBLIC KEY in PEM")
	}
	return keys, nil
}

// signedByKey reports whether one of the rule's keys has signed the message.
func (r *Rule) signedByKey(message, signature []byte) bool {
	for _, key := range r.keys {
		if verify(key, message, signature) {
			return true
		}
	}
	return false
}

// verify checks a signature as cosign makes them: with SHA-256, or the hash that fits the curve.
func verify(key crypto.PublicKey, message, signature []byte) bool {
	sum := sha256.Sum256(message)
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(k, sum[:], signature) {
			return true
		}
		switch bits := k.Curve.Params().BitSize; {
		case bits > 384:
			sum := sha512.Sum512(message)
			return ecdsa.VerifyASN1(k, sum[:], signature)
		case bits > 256:
			sum := sha512.Sum384(message)
			return ecdsa.VerifyASN1(k, sum[:], signature)
		}
		return false
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], signature) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(k, message, signature)
	}
	return false
}
