//! Real servers and scripted fakes for tests: nats-server, SeaweedFS, docker-registry, a fake upstream, a webhook sink, an OTLP receiver.
