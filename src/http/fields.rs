//! JSON objects that clients send, read field by field, so that every fault names its field.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::dataset::Fault;
use crate::error::{Error, Result};

/// The fields that are not read yet, and what is wrong with those that are.
pub struct Fields {
    left: Map<String, Value>,
    faults: Vec<Fault>,
}

impl Fields {
    /// The fields of an object.
    pub fn of(body: Value) -> Result<Self> {
        match body {
            Value::Object(left) => Ok(Self { left, faults: Vec::new() }),
            _ => Err(Error::parameter("body", "must be a JSON object")),
        }
    }

    /// The value of a field; `None` when it is absent, null, or wrong.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let value = self.left.remove(name).filter(|value| !value.is_null())?;
        match serde_json::from_value(value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault(name, error.to_string());
                None
            }
        }
    }

    /// The value of a field that must be there.
    pub fn require<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        if self.left.get(name).is_none_or(Value::is_null) {
            self.fault(name, "is required");
        }
        self.take(name)
    }

    /// Sets what a field stands for: an absent one leaves it, null is the default.
    pub fn set<T: DeserializeOwned>(&mut self, name: &str, target: &mut T, default: T) {
        match self.left.get(name) {
            None => {}
            Some(Value::Null) => {
                self.left.remove(name);
                *target = default;
            }
            Some(_) => *target = self.take(name).unwrap_or(default),
        }
    }

    /// Whether nothing is wrong so far.
    pub fn is_right(&self) -> bool {
        self.faults.is_empty()
    }

    /// A field is wrong.
    pub fn fault(&mut self, name: &str, reason: impl Into<String>) {
        self.faults.push(Fault::of_parameter(name, reason));
    }

    /// More is wrong.
    pub fn faults(&mut self, faults: Vec<Fault>) {
        self.faults.extend(faults);
    }

    /// Ends the reading: every fault at once, fields that nobody asked for among them.
    pub fn finish(mut self) -> Result<()> {
        for name in std::mem::take(&mut self.left).keys() {
            self.fault(name, "is no field of this request");
        }
        if self.faults.is_empty() { Ok(()) } else { Err(Error::Faults(self.faults)) }
    }
}
