//! An authority for endorsement keys, and one below it, by stock OpenSSL: with certificates and revocation
//! lists.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::swtpm::run;

/// Serial numbers of the authority below the root and of the endorsement key's certificate.
const BELOW: &str = "02";
const KEY: &str = "1234";

/// Extensions of certificates and of revocation lists, by section.
const SECTIONS: &str = "\
[req]\ndistinguished_name = name\nprompt = no\nx509_extensions = authority\n\
[name]\nCN = root\n\
[authority]\nbasicConstraints = critical,CA:TRUE\nkeyUsage = critical,keyCertSign,cRLSign\n\
subjectKeyIdentifier = hash\n\
[key]\nbasicConstraints = critical,CA:FALSE\nkeyUsage = critical,keyAgreement\n\
extendedKeyUsage = 2.23.133.8.1\nauthorityKeyIdentifier = keyid\n\
[ca]\ndefault_ca = lists\n\
[lists]\ndatabase = index\ncrlnumber = number\ndefault_md = sha256\ndefault_crl_days = 30\n\
[partial]\nissuingDistributionPoint = critical,@users\n\
[users]\nonlyuser = TRUE\n";

/// An authority's files.
pub(crate) struct Authority(PathBuf);

impl Authority {
    /// swtpm's authority, whose certificate does not say that it may sign lists: writes one of its.
    pub(crate) fn write_list_of_swtpm(folder: &Path, out: &Path) {
        let authority = Self(folder.into());
        for (name, content) in [("config", SECTIONS), ("index", ""), ("number", "01\n")] {
            fs::write(folder.join(name), content).unwrap();
        }
        let key = "-cert issuercert.pem -keyfile signkey.pem";
        authority.openssl(&format!("ca -gencrl -config config {key} -out issuer.crl"));
        let _ = fs::copy(folder.join("issuer.crl"), out.join("issuer.crl")).unwrap();
    }

    /// Makes a root and an authority below it.
    pub(crate) fn make(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("config"), SECTIONS).unwrap();
        let authority = Self(folder.into());
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -config config";
        authority.openssl(&format!(
            "req -x509 {key} -keyout root.key -out root.pem -days 7300 -set_serial 1"
        ));
        authority
            .openssl(&format!("req -new {key} -keyout below.key -out below.csr -subj /CN=below"));
        authority.openssl(&format!(
            "x509 -req -in below.csr -CA root.pem -CAkey root.key -set_serial 0x{BELOW} -days 7300 \
             -sha384 -extfile config -extensions authority -out below.pem"
        ));
        authority
    }

    fn openssl(&self, words: &str) {
        run(Command::new("openssl").args(words.split_whitespace()).current_dir(&self.0));
    }

    /// Both certificates, in PEM.
    pub(crate) fn certificates(&self) -> String {
        ["root.pem", "below.pem"]
            .map(|name| fs::read_to_string(self.0.join(name)).unwrap())
            .concat()
    }

    /// The certificate, as DER, of the endorsement key in a file in PEM.
    pub(crate) fn certify(&self, key: &Path) -> PathBuf {
        let key = key.display();
        self.openssl(&format!(
            "x509 -new -force_pubkey {key} -subj /CN=tpm -CA below.pem -CAkey below.key -sha256 \
             -set_serial 0x{KEY} -days 7300 -extfile config -extensions key -outform DER -out ek.der"
        ));
        self.0.join("ek.der")
    }

    /// Writes revocation lists: of both authorities, without entries and with one; and one that is not
    /// about all certificates.
    pub(crate) fn write_lists(&self, out: &Path) {
        let write = |name: &str, authority: &str, revoked: Option<&str>, more: &str| {
            let line =
                |serial| format!("R\t491231235959Z\t260101000000Z\t{serial}\tunknown\t/CN=x\n");
            fs::write(self.0.join("index"), revoked.map(line).unwrap_or_default()).unwrap();
            fs::write(self.0.join("number"), "01\n").unwrap();
            self.openssl(&format!(
                "ca -gencrl -config config -cert {authority}.pem -keyfile {authority}.key -out {name} {more}"
            ));
            let _ = fs::copy(self.0.join(name), out.join(name)).unwrap();
        };
        write("root.crl", "root", None, "");
        write("below.crl", "below", None, "");
        write("root-revokes.crl", "root", Some(BELOW), "");
        write("below-revokes.crl", "below", Some(KEY), "");
        write("partial.crl", "below", None, "-crlexts partial");
        self.openssl("crl -in below-revokes.crl -outform DER -out below-revokes.der");
        let _ = fs::copy(self.0.join("below-revokes.der"), out.join("below-revokes.der")).unwrap();
    }
}
