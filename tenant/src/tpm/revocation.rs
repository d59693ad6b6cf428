//! Revocation lists (RFC 5280, 5 and 6.3), which the tenant has as files: who is in them is not believed,
//! however long ago the list was made. Lists of a part of an authority's certificates, and lists of changes,
//! are not known here.

use std::time::Duration;

use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, DecodePem, Encode};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{KeyUsage, KeyUsages};

use super::certificate::is_signature;

/// id-ce-deltaCRLIndicator and id-ce-issuingDistributionPoint, which make a list one of a part.
const PARTIAL: [ObjectIdentifier; 2] =
    [ObjectIdentifier::new_unwrap("2.5.29.27"), ObjectIdentifier::new_unwrap("2.5.29.28")];

/// A revocation list. Whose it is has not been checked.
#[derive(Clone, Debug)]
pub struct List(CertificateList);

/// What lists say of a chain of certificates, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// There is a current list of each authority, and no certificate is in one.
    Good,
    /// There is no list of some authority.
    Missing,
    /// All lists of some authority were to be replaced by now, or are of the future.
    Stale,
    /// A list in the name of an authority is not signed by it, or is not about all of its certificates.
    Unusable,
    /// A certificate is in a list.
    Revoked,
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Good => "none is revoked, as lists of each authority say",
            Self::Missing => "no list of some authority is given",
            Self::Stale => "a list is too old, or of the future",
            Self::Unusable => {
                "a list is not signed by its authority, or is not about all certificates"
            }
            Self::Revoked => "a certificate is revoked",
        })
    }
}

impl List {
    /// Reads a list, in DER or in PEM.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let list = if bytes.starts_with(b"-----BEGIN ") {
            CertificateList::from_pem(bytes)
        } else {
            CertificateList::from_der(bytes)
        };
        list.ok().map(Self)
    }

    /// Whether `issuer` has signed it, and may, and it is about all of its certificates.
    fn is_of(&self, issuer: &Certificate) -> bool {
        let list = &self.0.tbs_cert_list;
        let may_sign = match issuer.tbs_certificate().get_extension::<KeyUsage>() {
            Ok(Some((_, usage))) => usage.0.contains(KeyUsages::CRLSign),
            Ok(None) => true,
            Err(_) => false,
        };
        let entries = list.revoked_certificates.iter().flatten();
        let of_entries = entries.flat_map(|entry| entry.crl_entry_extensions.iter().flatten());
        let is_plain =
            |extension: &Extension| !extension.critical && !PARTIAL.contains(&extension.extn_id);
        let is_whole = list.crl_extensions.iter().flatten().chain(of_entries).all(is_plain);
        // What is signed is DER, and so has one encoding only.
        let Ok(message) = list.to_der() else { return false };
        let algorithm = &self.0.signature_algorithm;
        may_sign
            && is_whole
            && list.signature == *algorithm
            && is_signature(issuer, &message, (&algorithm.oid, &self.0.signature))
    }

    fn has(&self, certificate: &Certificate) -> bool {
        let serial = certificate.tbs_certificate().serial_number();
        let mut entries = self.0.tbs_cert_list.revoked_certificates.iter().flatten();
        entries.any(|entry| entry.serial_number == *serial)
    }

    /// A list that does not say until when it is good is not.
    fn is_current(&self, now: Duration) -> bool {
        let list = &self.0.tbs_cert_list;
        let begin = list.this_update.to_unix_duration();
        list.next_update.is_some_and(|end| (begin..=end.to_unix_duration()).contains(&now))
    }
}

/// What `lists` say at `now`, in seconds since 1970, of the certificates in `chain`: the first is the
/// key's, the last that of the root, of which no list is asked. All are DER.
#[must_use]
pub fn standing(chain: &[&[u8]], lists: &[List], now: u64) -> Standing {
    let chain: Result<Vec<_>, _> = chain.iter().map(|der| Certificate::from_der(der)).collect();
    let chain = chain.unwrap_or_default();
    let now = Duration::from_secs(now);
    let links = chain.iter().zip(chain.iter().skip(1));
    let worst = links.map(|(certificate, issuer)| one(certificate, issuer, lists, now)).max();
    worst.unwrap_or(Standing::Missing)
}

fn one(certificate: &Certificate, issuer: &Certificate, lists: &[List], now: Duration) -> Standing {
    let name = certificate.tbs_certificate().issuer();
    // By signature first: two encodings may stand for one name (RFC 5280, 7.1).
    let (signed, mut others): (Vec<_>, Vec<_>) = lists.iter().partition(|list| list.is_of(issuer));
    others.retain(|list| list.0.tbs_cert_list.issuer == *name);
    if signed.iter().any(|list| list.has(certificate)) {
        Standing::Revoked
    } else if !others.is_empty() {
        Standing::Unusable
    } else if signed.iter().any(|list| list.is_current(now)) {
        Standing::Good
    } else if signed.is_empty() {
        Standing::Missing
    } else {
        Standing::Stale
    }
}
