//! Secrets in shares, of which so many make the secret and fewer say nothing (Shamir 1979), modulo
//! the order of Curve25519's group.

use curve25519_dalek::Scalar;

use super::MemberId;
use crate::error::Result;
use crate::federated::{invalid, random};

/// A secret that nobody can foresee.
pub(super) fn secret() -> Result<Scalar> {
    let (low, high) = (random::system_seed()?, random::system_seed()?);
    let mut wide = [0; 64];
    wide[..32].copy_from_slice(&low);
    wide[32..].copy_from_slice(&high);
    Ok(Scalar::from_bytes_mod_order_wide(&wide))
}

/// A polynomial through the secret at 0.
pub(super) struct Polynomial(Vec<Scalar>);

impl Polynomial {
    /// One that `threshold` of its values determine.
    pub(super) fn new(secret: Scalar, threshold: usize) -> Result<Self> {
        let rest = (1..threshold).map(|_| self::secret());
        Ok(Self(std::iter::once(Ok(secret)).chain(rest).collect::<Result<_>>()?))
    }

    /// A member's share: the value at its number.
    pub(super) fn share(&self, member: MemberId) -> [u8; 32] {
        let x = Scalar::from(member);
        self.0.iter().rev().fold(Scalar::ZERO, |sum, c| sum * x + c).to_bytes()
    }
}

/// The secret of shares by member, by Lagrange's formula at 0.
///
/// Errors: `InvalidDelta` for a share that is no number, or a member twice.
pub(super) fn reconstruct(shares: &[(MemberId, [u8; 32])]) -> Result<Scalar> {
    let bad = |member: &MemberId, reason: &str| invalid(format!("member {member}"), reason);
    let mut sum = Scalar::ZERO;
    for (i, (member, share)) in shares.iter().enumerate() {
        let share = Option::<Scalar>::from(Scalar::from_canonical_bytes(*share));
        let mut term = share.ok_or_else(|| bad(member, "it sent no share"))?;
        let x = Scalar::from(*member);
        for (j, (other, _)) in shares.iter().enumerate() {
            if i != j && member == other {
                return Err(bad(member, "it sent two shares"));
            }
            if i != j {
                let other = Scalar::from(*other);
                term *= other * (other - x).invert();
            }
        }
        sum += term;
    }
    Ok(sum)
}
