//! How values are written that serde does not write as we do.

/// Text of which none is written as "", since TOML has no null.
pub(super) mod blank {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn deserialize<'de, D: Deserializer<'de>, T: From<String>>(deserializer: D) -> Result<Option<T>, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok((!text.is_empty()).then(|| text.into()))
    }

    pub fn serialize<S: Serializer, T: Serialize>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => value.serialize(serializer),
            None => serializer.serialize_str(""),
        }
    }
}

/// Sizes in the largest unit that divides them, since [`ByteSize`](bytesize::ByteSize) would round.
pub(super) mod size {
    use bytesize::ByteSize;
    use serde::{Deserialize, Deserializer, Serializer};

    const UNITS: [(u64, &str); 4] =
        [(bytesize::TIB, "TiB"), (bytesize::GIB, "GiB"), (bytesize::MIB, "MiB"), (bytesize::KIB, "KiB")];

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        ByteSize::deserialize(deserializer)
    }

    pub fn serialize<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = size.as_u64();
        let (factor, unit) =
            UNITS.into_iter().find(|(factor, _)| bytes > 0 && bytes.is_multiple_of(*factor)).unwrap_or((1, "B"));
        serializer.collect_str(&format_args!("{}{unit}", bytes / factor))
    }
}
