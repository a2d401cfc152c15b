# Library, headers and the files that find_package(sparsecore) reads.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
install(TARGETS sparsecore EXPORT sparsecore-targets)
install(DIRECTORY csrc/include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(
  EXPORT sparsecore-targets
  FILE sparsecore-config.cmake
  NAMESPACE sparsecore::
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/sparsecore)
write_basic_package_version_file(sparsecore-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/sparsecore-config-version.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/sparsecore)
