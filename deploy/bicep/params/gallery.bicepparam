// The gallery, before Packer runs.
using '../gallery.bicep'

param name = 'relay'
param architectures = ['x64']
