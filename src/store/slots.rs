//! The mapping from names to the nodes of a Cluster. Pure.

use redis::Value;

use super::address::Host;

const SLOTS: u16 = 16_384;

/// The slot of `name`, by its hash tag if it has one.
pub fn slot(name: &str) -> u16 {
    let tag =
        name.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(tag, _)| tag);
    let hashed = if tag.is_empty() { name } else { tag };
    crc16::State::<crc16::XMODEM>::calculate(hashed.as_bytes()) % SLOTS
}

/// The owners of all slots, as one node of the Cluster reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// First slot, last slot and their primary, in order.
    ranges: Vec<(u16, u16, Host)>,
    /// Replicas of the primaries. They can still report the slots when the primaries are gone.
    pub replicas: Vec<Host>,
}

impl Slots {
    /// Parses the answer of node `asked` to `CLUSTER SLOTS`. A node that is reported without an
    /// address has the address of `asked`.
    pub fn parse(answer: &Value, asked: &Host) -> Option<Self> {
        let mut slots = Self::default();
        for range in array(answer)? {
            let [first, last, primary, replicas @ ..] = array(range)? else { return None };
            slots.ranges.push((number(first)?, number(last)?, node(primary, asked)?));
            slots.replicas.extend(replicas.iter().filter_map(|replica| node(replica, asked)));
        }
        slots.ranges.sort_unstable();
        slots.replicas.sort_unstable();
        slots.replicas.dedup();
        Some(slots)
    }

    pub fn owner(&self, slot: u16) -> Option<&Host> {
        let after = self.ranges.partition_point(|(first, ..)| *first <= slot);
        let (_, last, host) = self.ranges.get(after.checked_sub(1)?)?;
        (slot <= *last).then_some(host)
    }

    /// Whether `host` owns `name`.
    pub fn is_at(&self, name: &str, host: &Host) -> bool {
        self.owner(slot(name)) == Some(host)
    }

    pub fn primaries(&self) -> Vec<Host> {
        let mut hosts: Vec<_> = self.ranges.iter().map(|(.., host)| host.clone()).collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }
}

fn array(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(items) => Some(items),
        _ => None,
    }
}

fn number<T: TryFrom<i64>>(value: &Value) -> Option<T> {
    match value {
        Value::Int(number) => (*number).try_into().ok(),
        _ => None,
    }
}

fn node(value: &Value, asked: &Host) -> Option<Host> {
    let [name, port, ..] = array(value)? else { return None };
    let name = match name {
        Value::BulkString(name) => std::str::from_utf8(name).ok()?,
        Value::SimpleString(name) => name,
        Value::Nil => "",
        _ => return None,
    };
    let name = match name {
        "" => asked.name.clone(),
        // The node should have a name, but `asked` does not know the name yet.
        "?" => return None,
        name => name.to_owned(),
    };
    Some(Host { name, port: number(port)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, port: u16) -> Host {
        Host { name: name.into(), port }
    }

    #[test]
    fn name_has_the_slot_that_redis_computes() {
        for (name, expected) in
            [("123456789", 12_739), ("foo", 12_182), ("{foo}bar", 12_182), ("a{foo}{bar}", 12_182)]
        {
            assert_eq!(slot(name), expected, "{name}");
        }
        assert_eq!(
            slot("a{}b"),
            crc16::State::<crc16::XMODEM>::calculate(b"a{}b") % SLOTS,
            "an empty tag is no tag"
        );
        assert_eq!(slot("warmkey:lag:{warmkey:abc}"), slot("warmkey:abc"));
    }

    #[test]
    fn slot_has_its_primary() {
        let node = |name: Value, port: i64| {
            Value::Array(vec![name, Value::Int(port), Value::BulkString(b"id".to_vec())])
        };
        let named = |name: &str, port| node(Value::BulkString(name.into()), port);
        let range = |first, last, nodes: Vec<Value>| {
            Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
        };
        let answer = Value::Array(vec![
            range(8_000, 16_383, vec![node(Value::Nil, 2), named("r", 4), named("?", 5)]),
            range(0, 5_000, vec![named("a", 1), named("r", 4)]),
            range(6_000, 7_999, vec![named("a", 1)]),
        ]);
        let slots = Slots::parse(&answer, &host("asked", 9)).unwrap();
        assert_eq!(slots.primaries(), [host("a", 1), host("asked", 2)]);
        assert_eq!(slots.replicas, [host("r", 4)]);
        let owner = |slot| slots.owner(slot).map(|host| host.port);
        assert_eq!(
            [0, 5_000, 5_001, 6_000, 8_000, 16_383].map(owner),
            [Some(1), Some(1), None, Some(1), Some(2), Some(2)]
        );
        assert_eq!(Slots::parse(&Value::Okay, &host("asked", 9)), None);
        assert_eq!(Slots::default().owner(7), None);
    }
}
