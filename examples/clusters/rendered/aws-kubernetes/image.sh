#!/usr/bin/env bash
# Make the image, step by step: bash image.sh build DIR | push | import | pull
#   build DIR  with docker, DIR having mconv's wheel in DIR/dist
#   push       to the registry, which is made and logged in to if it is Amazon's
#   import     of docker's image into the file that containers start from
#   pull       of the registry's image into that file, on a node that reaches it
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
image=megatron-training:latest
registry=123456789012.dkr.ecr.us-east-1.amazonaws.com
file=mconv.sqsh

build() {
  docker build --file "$here/Containerfile" --tag "$image" "$1"
}

push() {
  [[ -n $registry ]] || { echo "cluster.registry is not set: nowhere to push to" >&2; exit 2; }
  if [[ $registry =~ ^[0-9]+\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(\.cn)?$ ]]; then
    region=${BASH_REMATCH[1]}
    repository=${image%:*}
    aws ecr describe-repositories --region "$region" --repository-names "$repository" > /dev/null 2>&1 \
      || aws ecr create-repository --region "$region" --repository-name "$repository"
    aws ecr get-login-password --region "$region" | docker login --username AWS --password-stdin "$registry"
  fi
  docker tag "$image" "$registry/$image"
  docker push "$registry/$image"
}

fresh() {
  if [[ -e $file ]]; then
    echo "$file is there already; remove it to make it again"
    exit 0
  fi
  mkdir -p "$(dirname "$file")"
}

import() {
  fresh
  enroot import --output "$file.part" "dockerd://$image"
  mv "$file.part" "$file"
}

pull() {
  fresh
  enroot import --output "$file.part" 'docker://123456789012.dkr.ecr.us-east-1.amazonaws.com#megatron-training:latest'
  mv "$file.part" "$file"
}

case ${1-} in
  build) build "${2:?the folder whose dist/ holds the wheel of mconv}" ;;
  push | import | pull) "$1" ;;
  *) sed --quiet '2,/^set /{s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac
