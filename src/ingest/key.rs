//! What a key may be. The service refuses others, and clients check theirs by the same rule.

/// The longest key, in characters.
pub const MAX: usize = 512;

/// What a client may do whose key is taken.
pub const ADVICE: &str = "send another key, or add ?on_conflict=replace";

/// Checks that a key can be stored and told from others by eye. In an address, tabs and line ends would vanish.
///
/// # Errors
/// When it is blank, too long, or has control characters.
pub fn check(key: &str) -> Result<(), String> {
    let good = !key.trim().is_empty() && key.chars().count() <= MAX && !key.chars().any(char::is_control);
    if good { Ok(()) } else { Err(format!("must be 1 to {MAX} characters, none of them a control character")) }
}
