{{- define "registrar.selector" -}}
app.kubernetes.io/name: registrar
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "registrar.labels" -}}
app.kubernetes.io/name: registrar
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* A deployment and its disruption budget, of `dict "root" $ "part" "serve" "args" … "secrets" … "optional" …`, of those
that send mails with `"sends" true`. */}}
{{- define "registrar.deployment" -}}
{{- $values := index .root.Values .part -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .root.Release.Name }}-{{ .part }}
  labels:
    {{- include "registrar.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .part }}
spec:
  replicas: {{ $values.replicas }}
  revisionHistoryLimit: 3
  strategy:
    rollingUpdate:
      maxUnavailable: 0
      maxSurge: 1
  selector:
    matchLabels:
      {{- include "registrar.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "registrar.selector" . | nindent 8 }}
      annotations:
        prometheus.io/scrape: "true"
        prometheus.io/port: "8001"
        # Settings are read at the start only: pods are replaced when they change.
        registrar/settings: {{ .root.Values.settings | toJson | sha256sum }}
    spec:
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: 75
      {{- with .root.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "registrar.selector" . | nindent 14 }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        seccompProfile:
          type: RuntimeDefault
      containers:
        - name: registrar
          image: {{ printf "%s:%s" .root.Values.image.repository (.root.Values.image.tag | default .root.Chart.AppVersion) | quote }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy | default "IfNotPresent" }}
          args: {{ .args | toJson }}
          envFrom:
            - configMapRef:
                name: {{ .root.Release.Name }}
          env:
            {{- range .secrets }}
            - name: REGISTRAR_{{ . }}
              valueFrom:
                secretKeyRef:
                  name: {{ $.root.Values.secret }}
                  key: {{ . }}
            {{- end }}
            {{- range .optional }}
            - name: REGISTRAR_{{ . }}
              valueFrom:
                secretKeyRef:
                  name: {{ $.root.Values.secret }}
                  key: {{ . }}
                  optional: true
            {{- end }}
            {{- if eq .part "bounces" }}
            - name: REGISTRAR_BOUNCE_LISTEN
              value: 0.0.0.0:2525
            {{- end }}
          ports:
            {{- if eq .part "serve" }}
            - name: http
              containerPort: 8000
            {{- end }}
            - name: admin
              containerPort: 8001
            {{- if eq .part "bounces" }}
            - name: smtp
              containerPort: 2525
            {{- end }}
          readinessProbe:
            httpGet:
              path: /health/ready
              port: {{ eq .part "serve" | ternary "http" "admin" }}
            periodSeconds: 2
            timeoutSeconds: 4
          livenessProbe:
            httpGet:
              path: /health/live
              port: admin
            periodSeconds: 10
            timeoutSeconds: 5
          startupProbe:
            httpGet:
              path: /health/live
              port: admin
            periodSeconds: 2
            failureThreshold: 90
          {{- with $values.resources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities:
              drop: [ALL]
          volumeMounts:
            - name: tmp
              mountPath: /tmp
            {{- if .sends }}
            - name: templates
              mountPath: /templates
              readOnly: true
            {{- end }}
            {{- if eq .part "bounces" }}
            - name: tls
              mountPath: /tls
              readOnly: true
            {{- end }}
      volumes:
        - name: tmp
          emptyDir:
            sizeLimit: 64Mi
        {{- if .sends }}
        - name: templates
          configMap:
            name: {{ .root.Release.Name }}-templates
            optional: true
        {{- end }}
        {{- if eq .part "bounces" }}
        - name: tls
          secret:
            secretName: {{ .root.Release.Name }}-bounces-tls
            optional: true
        {{- end }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .root.Release.Name }}-{{ .part }}
  labels:
    {{- include "registrar.labels" .root | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "registrar.selector" . | nindent 6 }}
{{- end }}
