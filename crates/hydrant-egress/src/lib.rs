//! The one dialer: every outbound address is checked after DNS, at connect, on each hop.
