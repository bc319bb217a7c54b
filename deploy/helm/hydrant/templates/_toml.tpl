{{/*
The resources as TOML. Helm's own toToml writes whole numbers as floats, which hydrant refuses; JSON
strings, numbers, booleans and lists of them are TOML as they stand.
*/}}
{{- define "hydrant.toml" -}}
{{- $document := . -}}
{{- range $kind := list "upstream" "credential" "rule" "webhook" }}
{{- range $resource := get $document $kind }}
[[{{ $kind }}]]
{{- range $key, $value := $resource }}
{{ $key }} = {{ include "hydrant.tomlValue" $value }}
{{- end }}
{{ end }}
{{- end }}
{{- end }}

{{- define "hydrant.tomlValue" -}}
{{- if kindIs "map" . -}}
{ {{- range $index, $key := keys . | sortAlpha }}{{ if $index }},{{ end }} {{ $key }} = {{ include "hydrant.tomlValue" (get $ $key) }}{{ end }} }
{{- else if kindIs "slice" . -}}
[{{- range $index, $value := . }}{{ if $index }}, {{ end }}{{ include "hydrant.tomlValue" $value }}{{ end }}]
{{- else -}}
{{- toJson . -}}
{{- end -}}
{{- end }}
