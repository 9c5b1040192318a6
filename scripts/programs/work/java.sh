# shellcheck shell=bash
exec "${java:?}" -Xmx128m -cp /tmp/java Java
